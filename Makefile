# Every target sets itself up: a virtual environment in .venv, pinned by constraints.txt (the CPU build of torch).

PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.ready

.PHONY: demo test check format docs bench parity clean

demo: $(SETUP)  ## the whole story on the bundled models
	$(BIN)/plait demo

test: $(SETUP)  ## all tests
	$(BIN)/pytest -n auto

check: $(SETUP)  ## format, lint, types, generated docs up to date
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check

format: $(SETUP)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix
	$(BIN)/python docs/generate.py

docs: $(SETUP)  ## the site, into site/
	$(BIN)/pip install -q -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict

$(SETUP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt 'torch' 2>&1 | grep -v '^WARNING: Location' || true
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]' 2>&1 | grep -v '^WARNING: Location' || true
	$(BIN)/python -c 'import plait, pytest, torch, transformers'
	touch $(SETUP)

clean:
	rm -rf .venv build dist site demo .pytest_cache .ruff_cache .mypy_cache .hypothesis
