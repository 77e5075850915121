"""The cellar: what one VM asks of the host, and how it is given and taken back.

Nothing here imports anything but ``kvmhooks.values``, ``kvmhooks.errors`` and the standard
library, so that a broken virtual environment never keeps a VM from starting.
"""
