"""The resources that one VM at a time has: huge pages, devices, virtual functions."""
