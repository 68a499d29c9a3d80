# What a person types. `make` alone lists the targets. Needs Python 3.11 or newer and make, nothing else.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   ?= demo
ARGS   ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup browser test demo lint format site bench clean

help:
	@echo 'make setup   install hetcl and its tools into $(VENV) (again only when pyproject.toml or constraints.txt change)'
	@echo 'make demo    the whole story on built-in images, a few minutes on two cores; writes $(DEMO)/'
	@echo 'make test    run the tests              (make test ARGS="tests/model -x" for some of them)'
	@echo 'make browser find or install the Chromium in which tests open the page of hetcl report'
	@echo 'make lint    ruff, mypy, codespell      (make format repairs what ruff can)'
	@echo 'make site    the documents as a site in build/site, which opens from disk'
	@echo 'make bench   measure the claims in bench/, each as a ratio'
	@echo 'make clean   remove $(VENV) and caches, never a run'
	@echo
	@echo 'Another Python: make setup PYTHON=python3.12'

setup: $(VENV)/.installed
	@:

# Debian's own as root; elsewhere the one that playwright brings.
browser: setup
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
	  if command -v $$name >/dev/null; then echo "make: the tests open pages in $$name"; exit 0; fi; done; \
	if [ "$$(id -u)" = 0 ] && grep -q '^ID=debian' /etc/os-release 2>/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; \
	else $(BIN)/python -m playwright install chromium; fi || { \
	  echo 'make: no Chromium could be installed; install one (Debian: apt install chromium)' >&2; exit 1; }

test: setup
	$(BIN)/python -m pytest -n auto $(ARGS)

demo: setup
	$(BIN)/hetcl demo --out $(DEMO)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

site: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

bench: $(VENV)/.installed-bench
	@set -e; for claim in bench/[a-z]*.py; do echo "== $$claim"; $(BIN)/python "$$claim" $(ARGS); done

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps hold the time of the last installation. A .venv that lacks a working pip is made anew.
$(VENV)/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "make: no $(PYTHON) here. Install Python 3.11 or newer, or name one: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: hetcl needs Python 3.11 or newer and $(PYTHON) is" \
	    "$$($(PYTHON) -V 2>&1). Name another: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { \
	  echo "make: $(PYTHON) cannot make virtual environments (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo 'Installing hetcl and its tools into $(VENV): a few minutes and, with the CUDA build of torch, 5 GB ...'
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	@echo 'Installing the peers that bench/ compares with ...'
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,bench]'
	@touch $@
