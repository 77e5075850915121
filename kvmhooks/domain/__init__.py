"""A libvirt domain XML that is there already: read into a spec, tuned, and nothing of it lost."""
