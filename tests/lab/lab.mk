# The lab's targets. The top Makefile includes this file, and makes $(VENV)/installed-test.
# VARIANT is one of tests/lab/variants.py, or several with commas between. LAB_UNTIL is the time, in
# seconds since 1970, after which no test is begun.

VENV ?= .venv
VARIANT ?= default,trixie
# The libraries of the last three are what the lab's own QEMU, unpacked from backports, runs with.
PACKAGES_LAB = mmdebstrap e2fsprogs util-linux debian-archive-keyring \
    qemu-system-x86 qemu-utils seabios

.PHONY: lab lab-build lab-shell lab-clean apt-lab

lab: apt-lab $(VENV)/installed-test
	$(VENV)/bin/python -m tests.lab test --variant $(VARIANT) $(if $(LAB_UNTIL),--until $(LAB_UNTIL))

lab-build: apt-lab $(VENV)/installed-test
	$(VENV)/bin/python -m tests.lab build --variant $(VARIANT)

lab-shell: apt-lab $(VENV)/installed-test
	$(VENV)/bin/python -m tests.lab shell --variant $(firstword $(subst $(comma), ,$(VARIANT)))

lab-clean: $(VENV)/installed-test
	$(VENV)/bin/python -m tests.lab clean

# Without package lists apt cannot say where this machine gets Debian from.
apt-lab:
	@tests/tools/apt $(PACKAGES_LAB)
	@apt-get indextargets --format '$$(SITE)' 'Label: Debian' | grep -q . || apt-get -qq update

comma := ,
