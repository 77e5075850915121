# make run   boots a real Linux guest with kvm-launch
# make test  ruff, mypy and all tests but the lab's
# make check  ruff, mypy and the unit tests: about a minute, to work with
# make lab   the end-to-end tests in a virtual server (tests/lab)
# make bench the benchmarks: ratios, never limits
#
# Each sets up what it needs on a fresh Debian 12 machine. Without root nothing is installed by
# apt, and what is missing is named.

VENV ?= .venv
PYTHON ?= /usr/bin/python3
BIN = $(VENV)/bin

# A guest: QEMU, and what its initramfs is made of. libvirt-python is built against libvirt's headers.
PACKAGES_RUN = python3 python3-venv python3-dev gcc pkg-config libvirt-dev \
    qemu-system-x86 busybox-static cpio kmod
# The real components that the tests talk to.
PACKAGES_TEST = $(PACKAGES_RUN) git binutils libvirt-daemon-system libvirt-clients \
    libvirt-daemon-driver-qemu qemu-utils hwloc-nox util-linux strace iproute2 \
    qemu-system-common swtpm swtpm-tools passt ovmf \
    groff-base zsh fish
PACKAGES_BENCH = $(PACKAGES_TEST) virtinst

.PHONY: run test check bench guest clean apt-run apt-test apt-bench
.DELETE_ON_ERROR:

run: guest $(VENV)/installed-run
	$(BIN)/kvm-launch examples/quickstart.toml

test: apt-test $(VENV)/installed-test guest
	$(BIN)/python tests/tools/checks.py

check: apt-test $(VENV)/installed-test
	$(BIN)/python tests/tools/checks.py -n 2 tests/house tests/unit

bench: apt-bench $(VENV)/installed-test guest
	$(BIN)/python benchmarks/run.py

guest: apt-run
	$(PYTHON) examples/guest/build.py build/guest

$(VENV)/installed-run: setup.cfg pyproject.toml | apt-run
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[libvirt]'
	touch $@

$(VENV)/installed-test: setup.cfg pyproject.toml | apt-test
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

apt-run apt-test apt-bench: apt-%:
	@tests/tools/apt $(PACKAGES_$(shell echo $* | tr a-z A-Z))

clean:
	rm -rf build $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis

-include tests/lab/lab.mk
