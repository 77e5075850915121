# The lab's targets; the top Makefile includes this file. VENV is the project's environment.
VENV ?= .venv
VARIANT ?= default,backports
LAB_PACKAGES := mmdebstrap e2fsprogs qemu-system-x86 qemu-utils util-linux debian-archive-keyring
LAB_CACHE = $(if $(KVMHOOKS_LAB_CACHE),$(KVMHOOKS_LAB_CACHE),build/lab)

.PHONY: lab lab-shell lab-clean lab-packages

lab: lab-packages $(VENV)/bin/python
	$(VENV)/bin/python -m tests.lab test --variant $(VARIANT)

lab-shell: lab-packages $(VENV)/bin/python
	$(VENV)/bin/python -m tests.lab shell --variant $(firstword $(subst $(comma), ,$(VARIANT)))

lab-clean: $(VENV)/bin/python
	$(VENV)/bin/python -m tests.lab clean

# Root is needed only where something is missing, and to build the image.
lab-packages:
	@missing=; for package in $(LAB_PACKAGES); do \
	    dpkg-query -W -f '$${db:Status-Status}' $$package 2> /dev/null | grep -qx installed \
	        || missing="$$missing $$package"; done; \
	[ -z "$$missing" ] || { apt-get -q update && \
	    DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends \
	        -o DPkg::Lock::Timeout=300 install $$missing; }
	@apt-get indextargets --format '$$(LABEL)' 'Label: Debian' | grep -q . || apt-get -q update

comma := ,
