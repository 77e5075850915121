"""The lab: a virtual server in which everything is real, for tests from end to end.

See README.md beside this file. Read the modules in this order: ``variants`` (what kinds of
server there are), ``image`` (what is on its disk), ``machine`` (the QEMU that runs it), ``frozen``
(how one is booted once and restored often), ``lab`` (what a test can do with one).
"""
