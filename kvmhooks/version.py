"""The version, alone in a module so that setuptools reads it without importing anything else."""

VERSION = "0.1.0"
