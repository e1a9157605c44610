# For a newcomer: `make demo`, `make test`, `make docs`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow docs lint format clean

demo: .venv/installed
	$(BIN)/sft-rl train swiss_roll

test: lint
	$(BIN)/python -m pytest -n 4 --no-loadscope-reorder

test-slow: lint
	$(BIN)/python -m pytest -n 4 --no-loadscope-reorder --slow

docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv/installed-docs: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

clean:
	rm -rf .venv build dist site *.egg-info
