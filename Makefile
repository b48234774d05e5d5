# sayagain: `make help` lists the targets. All of them install what they need into .venv first.

.DEFAULT_GOAL := help
.PHONY: help demo test check soak bench lint clean

# The first Python that is 3.11 or newer; 3.11 is what the pins are tested with. Another one: make demo PYTHON=/path/to/python
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
  "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
PIP := .venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt
PYTEST := .venv/bin/python -m pytest
FAST := not slow and not soak and not e2e and not dag and not browser and not prism and not spark
DEMO ?= demo

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-6s %s\n", $$1, $$2}' Makefile

demo: .venv/.core ## make a log in several languages, mine it, show the release and its report (in ./demo)
	.venv/bin/sayagain demo --out $(DEMO)

test: .venv/.dev ## every test but the long runs
	$(PYTEST) -n 2 --dist loadscope -m "not soak"

check: .venv/.dev ## the fast tests
	$(PYTEST) -n 2 --dist loadscope -m "$(FAST)"

soak: .venv/.dev ## the long runs, about two hours: faults, Airflow, scale; a line of progress a minute or so, a dated row of each in tests/soak/RESULTS.md
	$(PYTEST) -v -m soak tests/soak

bench: .venv/.dev ## turns per second beside plain Polars; goals of 50,000 texts beside community_detection (BENCH="--turns 1000000 --save")
	.venv/bin/python tests/bench/bench.py $(BENCH)

lint: .venv/.dev ## ruff, mypy, import-linter
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

clean: ## remove .venv, caches and the demo
	rm -rf .venv build dist *.egg-info demo
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "sayagain needs Python 3.11 or newer, and there is none on the PATH; or name one: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

# Stamps: the demo needs the pipeline alone, tests need Airflow and the developer tools too.
.venv/.core: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e .
	@touch $@

.venv/.dev: .venv/.core
	$(PIP) -e '.[airflow,lineage,dev]'
	@touch $@
