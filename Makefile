# make run   boots a real Linux guest with kvm-launch
# make test  ruff, mypy and all tests but the lab's
# make check  ruff, mypy and the unit tests: about a minute, to work with
# make deb   the Debian package, in dist/, held to lintian
# make deb-test  the packages installed, used and removed in clean Debian systems
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
# What the package is built with, which is what it runs on as well.
PACKAGES_DEB = python3 build-essential debhelper dh-python pybuild-plugin-pyproject python3-all \
    python3-setuptools python3-attr python3-cattr python3-lxml python3-pyudev python3-rich lintian
PACKAGES_DEB-TEST = $(PACKAGES_TEST) $(PACKAGES_DEB) mmdebstrap debian-archive-keyring
PACKAGES_BENCH = $(PACKAGES_TEST) virtinst

.PHONY: run test check bench guest clean deb deb-test \
    apt-run apt-test apt-bench apt-deb apt-deb-test
.DELETE_ON_ERROR:

run: guest $(VENV)/installed-run
	$(BIN)/kvm-launch examples/quickstart.toml

test: apt-test $(VENV)/installed-test guest
	$(BIN)/python tests/tools/checks.py

check: apt-test $(VENV)/installed-test
	$(BIN)/python tests/tools/checks.py tests/house tests/unit

deb: apt-deb
	/usr/bin/python3 tests/tools/build_deb.py dist

# Without package lists apt cannot say where this machine gets Debian from.
deb-test: apt-deb-test $(VENV)/installed-test guest deb
	@apt-get indextargets --format '$$(SITE)' 'Label: Debian' | grep -q . || apt-get -qq update
	$(BIN)/python tests/tools/checks.py pytest --packages tests/packages

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

apt-run apt-test apt-bench apt-deb apt-deb-test: apt-%:
	@tests/tools/apt $(PACKAGES_$(shell echo $* | tr a-z A-Z))

clean:
	rm -rf build dist $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis

-include tests/lab/lab.mk
