# SPDX-License-Identifier: GPL-2.0-or-later

BASE = 7.2
# The releases that tests upgrade between, and one more that must build
OLD = $(BASE).17
NEW = newest
FIRST = $(BASE).0

# For `make RELEASE=7.2.N` and `make series RELEASE=7.2.N`
RELEASE =
SANITIZE =
# For `make check-series BUILD=1`
BUILD =
# For check: what to give to pytest, as TESTS='-k monitor'
TESTS =

PYTHON = /usr/bin/python3
BUILD_QEMU = maint/build --base=$(BASE)
PAIR = --old build/old/qemu-system-x86_64 --new build/new/qemu-system-x86_64

# For install-contrib, which puts DESTDIR before them
prefix = /usr/local
sbindir = $(prefix)/sbin
mandir = $(prefix)/share/man

.NOTPARALLEL:
.PHONY: help all old-new demo check check-hooks check-series check-sanitized \
        bench series install-contrib deps clean distclean

ifneq ($(RELEASE)$(SANITIZE),)
all:
	@$(BUILD_QEMU) $(if $(SANITIZE),--sanitize) $(or $(RELEASE),$(NEW))
else
all: old-new
endif

old-new:
	@$(BUILD_QEMU) $(OLD) $(NEW)
	@ln -sfn $(OLD) build/old
	@ln -sfn $(if $(filter newest,$(NEW)),$$(tail -n 1 build/releases),$(NEW)) build/new

help:
	@echo 'make                 build/old and build/new: $(OLD) and the newest release'
	@echo 'make demo            a Linux guest lives through an upgrade from old to new'
	@echo 'make check           everything: build, hooks, series, qtest, functional tests,'
	@echo '                     libvirt'
	@echo "                     (TESTS='-k monitor' chooses functional tests)"
	@echo 'make check-sanitized functional tests with ASan and UBSan (hours)'
	@echo 'make bench           measure downtime'
	@echo 'make series          build/series/$(BASE).N: patches for that release, for git am'
	@echo 'make check-hooks     overlay and hooks apply to every release'
	@echo 'make check-series    the series applies and passes checkpatch'
	@echo '                     (BUILD=1: and each patch of it builds)'
	@echo 'make RELEASE=$(BASE).N   build/$(BASE).N; with SANITIZE=1 build/$(BASE).N-asan'
	@echo 'make install-contrib exec-upgrade-domains and its man page, in $(prefix),'
	@echo '                     or in prefix=PATH; DESTDIR=PATH is put before it'
	@echo 'make deps            install the Debian packages that all of this needs'
	@echo 'make clean           remove what was built, but not what was downloaded'
	@echo 'make distclean       remove all of build/'

deps:
	@./configure --packages=build,test,contrib

demo: deps old-new
	@$(PYTHON) tests/demo.py $(PAIR)

check: deps old-new
	@$(BUILD_QEMU) --compile-only $(FIRST)
	@$(PYTHON) maint/check.py $(TESTS)

# Leaks of a process that ends with its guest are QEMU's own
check-sanitized: deps
	@$(BUILD_QEMU) --sanitize $(OLD) $(NEW)
	@ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	 EXEC_UPGRADE_TEST_TIMEOUT=240 $(PYTHON) -m pytest -n auto \
		--timeout=900 --old=build/$(OLD)-asan/qemu-system-x86_64 \
		--new=build/$$(tail -n 1 build/releases)-asan/qemu-system-x86_64 \
		tests/functional $(TESTS)

bench: deps old-new
	@$(PYTHON) tests/bench/downtime.py $(PAIR)

check-hooks:
	@./configure --base=$(BASE) --source >/dev/null
	@$(PYTHON) maint/source_tree.py --base $(BASE) --check

series check-series:
	@./configure --base=$(BASE) --source >/dev/null
	@$(PYTHON) maint/series.py --base $(BASE) \
		$(if $(filter check-series,$@),--check) $(if $(BUILD),--build) \
		$(or $(RELEASE),newest)

build/%.8: contrib/%.rst
	@./configure --packages=contrib
	@mkdir -p build
	@rst2man --halt=warning $< $@.$$$$ && mv $@.$$$$ $@

install-contrib: build/exec-upgrade-domains.8
	install -D -m 755 -t '$(DESTDIR)$(sbindir)' contrib/exec-upgrade-domains
	install -D -m 644 -t '$(DESTDIR)$(mandir)/man8' $<

clean:
	rm -rf build/$(BASE).* build/old build/new build/src build/series \
		build/check build/guest build/*.8

distclean:
	rm -rf build
