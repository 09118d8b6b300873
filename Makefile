# The commands of the project. A new machine needs Linux, make, and Python 3.11 or later.
# The first command that needs packages creates .venv and installs them.

PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint house clean

help:  ## print this list
	@echo 'Usage: make COMMAND [PYTHON=python3.12]'
	@echo
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{ printf "  %-12s%s\n", $$1, $$2 }'

quickstart: .venv/requirements  ## fine-tune MiniLM on docstrings, then train a ViT on digits
	$(BIN)/python train.py configs/quickstart_text.py
	$(BIN)/python train.py configs/quickstart_image.py

test: .venv/requirements-dev  ## run all tests, two files at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/requirements-dev  ## check style, formatting, and the types of the core
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

house:  ## check the sizes of files and functions, and the direction of imports
	$(PYTHON) tools/house.py

clean:  ## delete the environment, the caches and the run folders
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache runs

.venv/%: %.txt requirements.txt constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("ftloop needs Python 3.11 or later: make PYTHON=python3.12")'
	$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $< -c constraints.txt
	touch $@
