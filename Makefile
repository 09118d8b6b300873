# The two commands of the README, and what they are made of. A fresh machine needs Linux, Python 3.11 or later, and make.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test lint clean

quickstart: .venv/requirements  ## MiniLM on docstrings, then a ViT on digits: no model hub, 2 and a half minutes of training
	$(BIN)/python train.py configs/quickstart_text.py
	$(BIN)/python train.py configs/quickstart_image.py

test: .venv/requirements-dev  ## the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/requirements-dev  ## style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/%: %.txt requirements.txt constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("ftloop needs Python 3.11 or later: make PYTHON=python3.12")'
	$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $< -c constraints.txt
	touch $@

clean:  ## remove the environment and the runs
	rm -rf .venv runs
