# Two commands are all a newcomer needs: `make demo` and `make test`. Each creates .venv where it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# One thread per test worker: the workers share the cores.
TESTS := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

.PHONY: demo test verify docs notebooks check format bench clean

demo: $(VENV)/base.stamp
	$(BIN)/maskformer demo --out demo

test: $(VENV)/dev.stamp
	$(TESTS) -m "not slow and not docs"

verify: $(VENV)/dev.stamp
	$(TESTS)

# The documentation as a site in site/, and every code block and notebook of it run.
docs: $(VENV)/dev.stamp
	$(BIN)/zensical build --strict
	$(TESTS) -m docs

check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(VENV)/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/dev.stamp
	$(BIN)/maskformer benchmark --out benchmarks/results/$(shell date +%F).json

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/base.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable .
	touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable ".[dev]"
	touch $(VENV)/base.stamp $@

# Runs the notebooks and keeps their outputs.
notebooks: $(VENV)/dev.stamp
	$(BIN)/python docs/figures/notebooks.py

clean:
	rm -rf $(VENV) dist demo site
