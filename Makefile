# Every target sets up .venv by itself. PYTHON names the interpreter to use, as in
# `make test PYTHON=python3.12`; .venv is made anew when its version changes.
PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
BIN := .venv/bin
STAMP := .venv/installed-$(VERSION)
export MPLBACKEND = Agg
# What is installed is compiled to bytecode when it is first imported, not all of it
# at once: that takes longer than everything else of the installation.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint format clean

# The main job: a network on handwritten digits, from initialisation to L = 1e-800.
# Typed again it resumes, or shows what is there.
demo: $(STAMP)
	$(BIN)/gradflow run

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("gradflow needs Python 3.11 or newer, \
	and $(PYTHON) is older: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
	  -e '.[dev]'
	touch $@
