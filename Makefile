# One virtual environment, made anew whenever pyproject.toml changes; every target uses it.
SHELL := bash
VENV ?= .venv
EXTRAS ?= dev
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PY := $(VENV)/bin/python
SCRIPTS := .ci/run $(wildcard launch/*.sh)
# glibc keeps and reuses large blocks, in huge pages, instead of returning them to Linux after every step: docs/training.md.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184
# Two tests at a time: more only compete for the cores that XLA already uses.
WORKERS ?= 2
CONFIG ?= experiments/speedy.py

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' Makefile | expand -t 12

venv: $(VENV)/.installed ## the virtual environment, with the package and its development tools

$(VENV)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; name one: make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@

lint: venv ## ruff and shellcheck
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/shellcheck $(SCRIPTS)

format: venv ## let ruff mend what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

test: venv ## the fast tests and the examples of the docstrings
	$(PY) -m pytest -n $(WORKERS)

test-packaged: venv ## the slow tests of the packaged prior, the wheel and the Python in the pages: some of test-slow
	$(PY) -m pytest -m 'slow and not device' --timeout 900 tests/test_embedded.py tests/test_docs.py tests/test_wheel.py \
		tests/evaluation/test_kriging.py

test-survival: venv ## several processes, one of them killed, and a faulty server: some of test-slow
	$(PY) -m pytest -m 'slow and not device' --timeout 900 tests/training/test_processes.py tests/data/test_bucket.py \
		-k 'fsdp or space or archives or killing_one or training_goes_on'

test-prepare: ## the tests that need Beam or an S3 server, in an environment of their own
	$(MAKE) venv VENV=.venv-prepare EXTRAS=test,prepare,bucket
	.venv-prepare/bin/python -m pytest -n $(WORKERS) tests/data/test_prepare.py tests/data/test_bucket.py

test-slow: venv ## the tests that need minutes
	$(PY) -m pytest -m 'slow and not device' --timeout 900

test-exhaustive: venv ## every task by every method and sampler
	$(PY) -m pytest -n $(WORKERS) -m exhaustive

test-device: venv ## the tests that need an accelerator
	$(PY) -m pytest -m device --timeout 900

demo: venv ## a held-out atmosphere from few observations, by the packaged prior
	$(PY) -m wind_jax.infer --config experiments/sparse_obs.py --config.workdir=runs/sparse_obs
	@ls runs/sparse_obs/report.html

forecast: venv ## an ensemble forecast, by the packaged prior
	$(PY) -m wind_jax.infer --config experiments/forecast.py --config.workdir=runs/forecast
	@ls runs/forecast/report.html

skill: venv ## the tables of docs/skill.md and README.md, from every task
	$(PY) -m studies.skill

bench: venv ## seconds, FLOP/s and memory of training, sampling, guidance and loading; CONFIG=experiments/... ARGS="--config.mesh.data=-1 ..."
	$(PY) benchmarks/train_step.py --config $(CONFIG) $(ARGS)
	$(PY) benchmarks/sample.py --config $(CONFIG) $(ARGS)
	$(PY) benchmarks/guidance.py --config $(CONFIG) $(ARGS)
	$(PY) benchmarks/data.py

clean: ## remove what the targets above made, except runs/ and data/
	rm -rf $(VENV) .venv-prepare build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help venv lint format test test-packaged test-survival test-prepare test-slow test-exhaustive test-device demo forecast skill bench clean
