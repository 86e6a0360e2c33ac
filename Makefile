# `make` lists what there is to do.
#
# Each target makes the environment that it needs under .venv/, one set for each Python, out of
# nothing but that Python and PyPI. An environment is made once; its requirements are installed
# again when setup.cfg changes, and the wheel when the package does.

PYTHON ?= python3
ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

# The source tree or another project's modules must not get in front of the installed wheel.
unexport PYTHONPATH PYTHONHOME
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# "3.11.7": the environments of one Python don't survive its upgrade, so the whole version is in
# their name. Not asked for `help` and `clean`, which need no Python.
ifneq ($(filter-out help clean,$(MAKECMDGOALS)),)
VERSION := $(shell "$(PYTHON)" -c 'import platform, sys; print(platform.python_version() + getattr(sys, "abiflags", "") if sys.version_info >= (3, 10) and platform.python_implementation() == "CPython" else "")')
ifeq ($(VERSION),)
$(error PYTHON=$(PYTHON) is not a CPython of version 3.10 or newer. Name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3)
endif
endif

ENV := .venv/$(VERSION)
ENVIRONMENTS := build test demo bench lint
EXTRAS_test := test,samples
EXTRAS_demo := samples
EXTRAS_bench := bench
EXTRAS_lint := lint

# A deleted module must not stay in the wheel, and what it changes is its directory's time.
SOURCES := $(shell find asgi_perfkit -name __pycache__ -prune -o \( -type d -o -type f ! -name '.*' \) -print)

# $(call pip,ENVIRONMENT): -I, so that neither this directory nor the user's packages are on sys.path.
pip = "$(ENV)/$(1)/bin/python" -I -m pip
# $(call script,ENVIRONMENT,NAME): through its Python, since the path in a script's first line is
# wrong once the checkout has been moved.
script = "$(ENV)/$(1)/bin/python" "$(ENV)/$(1)/bin/$(2)"
# $(call wheel,EXTRAS): the one that was built, as pip is to install it.
wheel = "$$(ls "$(ENV)"/dist/*.whl)$(1)"

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile
	@echo
	@echo '  PYTHON=python3.13    the Python to do it with (now: $(PYTHON))'
	@echo '  ARGS="-k histogram"  more arguments for pytest, the demo or the benchmarks'

.PHONY: demo
demo: $(ENV)/demo.installed ## start a real app behind hypercorn, send it traffic, show its figures
	@"$(ENV)/demo/bin/python" sample_apps/demo.py $(ARGS)

# The tests of servers in one process, all others in the other.
SHARED := -n 2 --dist loadgroup

.PHONY: test
test: $(ENV)/test.installed ## run the tests against the built wheel, in two processes when ARGS is empty
	@$(call script,test,pytest) $(if $(strip $(ARGS)),$(ARGS),$(SHARED))

.PHONY: coverage
coverage: export COVERAGE_FILE = $(ENV)/coverage
coverage: $(ENV)/test.installed ## run them all and tell which lines and branches were not run
	@rm -f "$(ENV)"/coverage*
	@$(call script,test,pytest) $(SHARED) --cov --cov-report=
	@$(call script,test,coverage) report --include='tests/*'
	@$(call script,test,coverage) report --include='asgi_perfkit/*' --fail-under=95

.PHONY: lint
lint: $(ENV)/lint.required ## check style and formatting
	@"$(ENV)/lint/bin/ruff" check .
	@"$(ENV)/lint/bin/ruff" format --check .

.PHONY: types
types: $(ENV)/lint.required ## check the package's types
	@"$(ENV)/lint/bin/python" -I -m mypy

.PHONY: docs
docs: $(ENV)/test.installed ## run the examples in README.md and docs/, check their links
	@$(call script,test,pytest) tests/test_examples.py $(ARGS)

.PHONY: bench
bench: $(ENV)/bench.required ## measure every speed claim side by side with its peers
	@"$(ENV)/bench/bin/python" -m benchmarks $(ARGS)

.PHONY: clean
clean: ## remove the environments and everything else that was made
	rm -rf .venv build dist *.egg-info .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name .git -prune -o -name __pycache__ -prune -exec rm -rf {} +

# ---- environments

$(ENVIRONMENTS:%=$(ENV)/%.made): $(ENV)/%.made:
	@"$(PYTHON)" -c 'import ensurepip, venv' || { \
		echo '$(PYTHON) cannot make virtual environments: its modules venv and ensurepip are a package of' \
			'their own on some systems (on Debian and Ubuntu: apt install python$(basename $(VERSION))-venv).' \
			'Install it, or name another Python: make PYTHON=...' >&2; exit 1; }
	@echo 'making $(ENV)/$*'
	@rm -rf "$(ENV)/$*"
	@"$(PYTHON)" -m venv "$(ENV)/$*"
	@touch "$@"

# Built from a copy: setuptools leaves build/ and *.egg-info beside its input, and would pack again
# what an earlier build left there.
$(ENV)/wheel.built: $(ENV)/build.made setup.cfg pyproject.toml README.md LICENSE $(SOURCES)
	@echo 'building the wheel in $(ENV)/dist'
	@rm -rf "$(ENV)/source" "$(ENV)/dist"
	@mkdir "$(ENV)/source"
	@cp -R asgi_perfkit setup.cfg pyproject.toml README.md LICENSE "$(ENV)/source"
	@$(call pip,build) wheel -qq --no-deps --wheel-dir "$(ENV)/dist" "./$(ENV)/source"
	@touch "$@"

$(ENVIRONMENTS:%=$(ENV)/%.required): $(ENV)/%.required: $(ENV)/%.made setup.cfg | $(ENV)/wheel.built
	@echo 'installing [$(EXTRAS_$*)] in $(ENV)/$*'
	@$(call pip,$*) install -qq $(call wheel,[$(EXTRAS_$*)])
	@touch "$@"

# The version stays the same from one build to the next, so pip has to be told to replace it.
$(ENVIRONMENTS:%=$(ENV)/%.installed): $(ENV)/%.installed: $(ENV)/%.required $(ENV)/wheel.built
	@$(call pip,$*) install -qq --no-deps --force-reinstall $(call wheel)
	@touch "$@"
