# make study: the main job, on a fresh machine too.   make test: the whole test suite.
# Both create the environment in VENV when it is missing or pyproject.toml has changed; a second call is quick.

PYTHON ?= python3
VENV ?= .venv
OUT ?= report
ARGS ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: study study-smoke test lint types proofs docs clean help

help:
	@echo "make study        run the main job, leaves $(OUT)/report.html   (ARGS='--steps 500 ...' is passed on)"
	@echo "make study-smoke  the same at toy size, in seconds, leaves $(OUT)-smoke/"
	@echo "make test         run the tests   (PYTHON=python3.13 VENV=.venv-3.13 runs them on another Python)"
	@echo "make lint types   ruff and mypy"
	@echo "make proofs       check the proofs for every size (needs Coq; says how to install it)"
	@echo "make docs         build the documentation, leaves docs/_build/html"
	@echo "make clean        remove the environment and all caches (reports stay)"

study: $(READY)
	$(BIN)/alflb study --out $(OUT) $(ARGS)

study-smoke: $(READY)
	$(BIN)/alflb study --smoke --out $(OUT)-smoke $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n auto $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

proofs: $(READY)
	$(BIN)/python -m proofs_check.formal

docs: $(VENV)/.ready-docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; say which one: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(READY)

$(VENV)/.ready-docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@
