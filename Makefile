# Everything one does with a clone. `make` alone lists it.

VENV ?= .venv
PIP_ARGS ?=#    passed to pip, for example an index with CPU-only builds of PyTorch
OUT ?= runs/demo
WORKERS ?= 2
BENCH ?=#       one benchmark by name; all of them if empty

BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export NO_MKDOCS_2_WARNING := 1
# Nothing is compiled at install (half a minute on two cores); each module's byte code is kept when first imported.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow check lint format docs docs-serve bench constraints clean clean-all

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed-demo ## train on real handwritten digits, sample, judge: a few minutes, then see runs/demo/report.html
	@$(BIN)/sfumato demo --out $(OUT)

test: check ## style, floors, types and the quick tests
	$(BIN)/pytest -n $(WORKERS) -m "not slow and not network"

test-slow: $(VENV)/.installed-dev ## the tests that train or kill real runs
	SFUMATO_TEST_THREADS=2 $(BIN)/pytest -m "slow and not network"

check: $(VENV)/.installed-dev ## style, floors and types only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

format: $(VENV)/.installed-dev ## put every file into the house style
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs ## build the documentation into site/
	$(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html"

docs-serve: $(VENV)/.installed-docs ## show the documentation while writing it
	$(BIN)/mkdocs serve

bench: $(VENV)/.installed-bench ## measure against other people's code (BENCH=name for one of them)
	@set -e; for file in $(if $(BENCH),benchmarks/$(BENCH).py,$(wildcard benchmarks/[a-z]*.py)); do \
	    echo "== $$file"; $(BIN)/python "$$file"; done

constraints: ## resolve constraints.txt anew, in an environment of its own
	@set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	$(MAKE) --no-print-directory VENV="$$folder/venv" "$$folder/venv/.made"; \
	"$$folder/venv/bin/pip" install -q --no-compile $(PIP_ARGS) -e '.[dev,docs,bench,hub]'; \
	{ sed -n '/^#/p' constraints.txt; \
	  "$$folder/venv/bin/pip" freeze --exclude-editable | sed 's/+cpu$$//' | grep == | sort -f; } > "$$folder/new"; \
	cp "$$folder/new" constraints.txt

clean: ## remove what was built, keep the environment and the runs
	rm -rf site dist build .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

clean-all: clean ## also remove the environment (runs stay)
	rm -rf $(VENV)

# --- the environment: made once, installed into only when what it is made from has changed ---

# The first Python on the path that is new enough; PYTHON=... overrides.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	    "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)

$(VENV)/.made:
	@if [ -z "$(PYTHON)" ]; then \
	    echo "sfumato needs Python 3.11 or newer, and none is on the path; name one with: make PYTHON=/path/to/python3" >&2; \
	    exit 1; fi
	@if "$(PYTHON)" -c 'import ensurepip, venv' >/dev/null 2>&1; then "$(PYTHON)" -m venv $(VENV); \
	elif "$(PYTHON)" -c 'import virtualenv' >/dev/null 2>&1; then "$(PYTHON)" -m virtualenv -q $(VENV); \
	else echo "$(PYTHON) cannot make virtual environments: install its venv module (on Debian and Ubuntu:" \
	    "apt-get install python3-venv) or virtualenv, then try again" >&2; exit 1; fi
	@touch $@

$(VENV)/.installed-%: $(VENV)/.made pyproject.toml constraints.txt
	@echo "installing sfumato[$*] into $(VENV) (PyTorch is the large part)"
	@$(BIN)/python -m pip install -qq --no-compile $(PIP_ARGS) -c constraints.txt -e '.[$*]'
	@touch $@
