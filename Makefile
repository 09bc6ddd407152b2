# Every target makes `.venv` first when it is missing or out of date (scripts/bootstrap.py says from what, and with which settings).
SHELL := bash
PYTHON ?= python3
BIN := .venv/bin
unexport PYTHONDONTWRITEBYTECODE # a job is a dozen processes, which need not all compile the same modules
SLOW = $(shell grep -rl --include='test_*.py' 'mark\.slow' tests | sort)

.PHONY: help setup packages demo serve test test-fast test-slow lint format lock trial-cluster trial-hosts clean

help:  ## What there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup:  ## Make or renew .venv
	@command -v $(PYTHON) >/dev/null || { echo "set-up: Sparring needs Python 3.11 or newer and found none: install one." >&2; exit 1; }
	@$(PYTHON) scripts/bootstrap.py

demo: setup  ## Build the demo world and watch a small policy get better by playing against itself
	@$(BIN)/sparring demo

serve: setup  ## The REST API and dashboard on this machine
	@$(BIN)/sparring serve

packages:  ## What the tests need from Debian: PostgreSQL, Chromium and Prometheus, installed where they are missing and can be
	@scripts/system_packages.sh

test: test-fast test-slow  ## All tests, the quick ones first

test-fast: setup packages  ## Tests without engines
	$(BIN)/pytest -q -m "not slow" -n auto --ignore tests/e2e

test-slow: setup packages  ## Tests that start vLLM, Ray and PairRM; two at a time, more would fill the machine; whole jobs (tests/e2e) first
	$(BIN)/pytest -q -m slow -n 2 --dist loadfile --no-loadscope-reorder --durations=25 $(SLOW)

lint: setup  ## Style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## Format, and mend what ruff can mend
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

lock: setup  ## Renew the exact versions in requirements/
	$(BIN)/python scripts/lock.py

trial-cluster:  ## docker-compose.yml tried as a whole, with a container killed and a backup restored (COMPOSE, ENGINE)
	deploy/cluster-trial.sh

trial-hosts: setup  ## One job over five hosts whose links fail, in network namespaces; as root
	deploy/hosts-trial.sh

clean:  ## Remove the environment and every cache
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
