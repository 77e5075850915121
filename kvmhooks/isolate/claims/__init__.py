"""The claim of one VM on the host, and the places where it is written."""
