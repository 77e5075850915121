"""The files of a host, live or captured: read within bounds, never trusted."""
