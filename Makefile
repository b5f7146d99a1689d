.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test coverage test-full test-cuda test-torch lint format samples clean readme picture fuzz bench wheel man docs

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(VENV)/.base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/.test: $(VENV)/.base
	$(PIP) --editable '.[test]'
	touch $@

$(VENV)/.lint: $(VENV)/.test
	$(PIP) --editable '.[lint]'
	touch $@

$(VENV)/.package: $(VENV)/.base
	$(PIP) --editable '.[package]'
	touch $@

demo: $(VENV)/.base  ## install into .venv and inspect a sample model
	$(BIN)/curvcli hessian sample_models/digits_mlp.toml

test: $(VENV)/.test  ## install what the tests need and run them
	$(BIN)/pytest -n 2 --durations=60 --durations-min=5

coverage: $(VENV)/.test  ## the same, with the share of branches that they go through (half as long again)
	$(BIN)/pytest -n 2 --cov=curvcli --cov-branch --cov-fail-under=90

test-full: $(VENV)/.test  ## all tests, slow sweeps too (hours)
	$(BIN)/pytest -n 2 -m ''

test-cuda: $(VENV)/.test  ## on a machine with a CUDA card: all commands on it against the CPU
	CURVCLI_TEST_DEVICE=cuda $(BIN)/pytest -m '' tests/device

test-torch:  ## all tests on another torch in an environment of its own: make test-torch VERSION=2.8.0
	test -n "$(VERSION)"
	test -x .venv-torch-$(VERSION)/bin/python || $(PYTHON) -m venv .venv-torch-$(VERSION)
	.venv-torch-$(VERSION)/bin/pip install --quiet --disable-pip-version-check 'torch==$(VERSION)' --editable '.[test]'
	.venv-torch-$(VERSION)/bin/pytest -n 2

lint: $(VENV)/.lint  ## ruff, mypy (strict) and the table of who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.lint  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

samples: $(VENV)/.test  ## train every sample model again
	$(BIN)/python sample_models/train.py

fuzz: $(VENV)/.test  ## ten minutes of new inputs for every reader: formats, target files, states, baselines, cache, rules
	$(BIN)/python -m tests.fuzz 600

wheel: $(VENV)/.package  ## build sdist and wheel, and run the demo from the wheel in an environment of its own
	rm -rf dist .venv-wheel
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt dist/*.whl
	folder=$$(mktemp -d) && cp -R sample_models "$$folder" && cd "$$folder/sample_models" \
		&& $(CURDIR)/.venv-wheel/bin/curvcli hessian digits_mlp.toml && rm -rf "$$folder"

clean:  ## remove the virtual environments, packages and caches
	rm -rf $(VENV) .venv-wheel .venv-torch-* dist man site .coverage .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

readme: $(VENV)/.test  ## write the generated parts of the docs again
	$(BIN)/cog -r docs/reference/commands.md docs/speed.md docs/architecture.md docs/larger-models.md docs/figures/*.md
	$(BIN)/curvcli schema target > docs/target.schema.json

$(VENV)/.docs: $(VENV)/.base
	$(PIP) --editable '.[docs]'
	touch $@

docs: $(VENV)/.docs  ## build the site into site/; a warning or a link to nowhere fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

man: $(VENV)/.base  ## write man pages into man/
	$(BIN)/python docs/manual.py man

bench:  ## install the peers into .venv-bench and measure curvcli beside them (an hour)
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	.venv-bench/bin/pip uninstall --quiet --yes torchvision  # a peer's dependency that does not import beside a CPU build
	.venv-bench/bin/python benchmarks/run.py
	.venv-bench/bin/python benchmarks/memory.py

picture: $(VENV)/.test  ## draw the README's picture and the gallery again
	$(BIN)/python docs/picture.py
	$(BIN)/python docs/gallery.py
