# `make run` shows what Colossus does on this machine, `make chat` talks with a small model served here, `make test` passes every test.
# All set themselves up in .venv first; all they write lies in this folder (.venv, runs).
PYTHON ?= python3
BIN := .venv/bin
COLOSSUS := $(BIN)/colossus
unexport PYTHONDONTWRITEBYTECODE
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

.PHONY: run chat test quick lint lock bench gallery clean

run: .venv/.installed
	@echo; echo "== 1/4  this machine"
	@$(COLOSSUS) machine
	@echo; echo "== 2/4  train a language model on Shakespeare with two workers, and kill one of them half way"
	@$(COLOSSUS) train recipes/shakespeare.toml --workers 2 --kill 1@100
	@echo; echo "== 3/4  what it writes now"
	@$(COLOSSUS) sample last "ROMEO. "
	@echo; echo "== 4/4  the report as a page: see 'page' in the table above"

# Each line of stdin is answered, where stdin is no terminal: echo Hello | make -s chat
chat: .venv/.installed
	@$(COLOSSUS) chat smollm2 --temperature 0 --max-tokens 256

test: .venv/.installed-dev
	$(BIN)/python -m pytest

quick: .venv/.installed-dev
	$(BIN)/python -m pytest -m "not slow"

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/bin/uv:
	@echo "making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Colossus needs Python 3.11 or newer; give one with: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet uv==0.13.9

.venv/.installed: .venv/bin/uv requirements/run.lock pyproject.toml
	@echo "installing Colossus and what it needs (about 0.8 GB) into .venv"
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --no-deps --compile-bytecode --require-hashes -r requirements/run.lock
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --no-deps -e .
	@touch $@

.venv/.installed-dev: .venv/.installed requirements/dev.lock
	@echo "installing what the tests need, PyTorch among it, into .venv"
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --no-deps --compile-bytecode --require-hashes -r requirements/dev.lock
	@$(BIN)/python -m pip install --quiet torch==2.13.0
	@touch $@

# Simulates the named machines anew: docs/gallery.
gallery: .venv/.installed
	$(BIN)/python benchmarks/gallery_build_out.py
	$(BIN)/python benchmarks/gallery.py
	$(BIN)/python benchmarks/gallery_build_out.py

# Renews the lock files from pyproject.toml.
lock: .venv/bin/uv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --extra chat --extra data --extra parquet --extra png --extra tensorboard pyproject.toml -o requirements/run.lock
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --extra chat --extra data --extra parquet --extra png --extra tensorboard --group dev pyproject.toml -c requirements/run.lock -o requirements/dev.lock

clean:
	rm -rf .venv runs
