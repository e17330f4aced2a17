# Every target sets itself up: a virtual environment in .venv, pinned by constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.ready
PIP := $(BIN)/pip install --disable-pip-version-check -q -c constraints.txt

.PHONY: demo test test-eval test-long fuzz check format docs bench clean

demo: $(SETUP)  # the whole story on the bundled models
	$(BIN)/plait demo

test: $(SETUP)  # every test
	$(BIN)/pytest -n 2

test-eval: $(SETUP)  # lm-eval's tasks, for which lm-eval is installed (0.6 GB)
	$(PIP) -e '.[dev,eval]'
	$(BIN)/pytest tests/evaluate

test-long: $(SETUP)  # merges killed at 400 points, each resumed and compared
	rm -rf build/interrupt && mkdir -p build/interrupt
	PYTHONPATH=tests $(BIN)/python tests/interrupt.py build/interrupt 400

fuzz: $(SETUP)  # 150,000 inputs for each reader of what strangers write; SEED=1 for others
	$(BIN)/python tests/fuzz/fuzz.py --seed $(or $(SEED),0)

check: $(SETUP)  # format, lint, types, generated pages up to date
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check

format: $(SETUP)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix
	$(BIN)/python docs/generate.py

docs: $(SETUP)  # the site, into site/
	$(PIP) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(SETUP)  # merges of 1.3 GB models next to the floor, a table and a plot; PEER=path/to/mergekit-yaml adds the peer
	mkdir -p build
	rm -f build/bench.json
	$(BIN)/python benchmarks/peer.py --json build/bench.json $(if $(PEER),--peer $(PEER))
	$(BIN)/python benchmarks/peer.py --json build/bench.json --memory --merges linear,slerp,ties
	$(BIN)/python benchmarks/peer.py --json build/bench.json --cold --merges linear,slerp,ties
	$(BIN)/python benchmarks/table.py build/bench.json $(if $(PEER),--plot build/bench.svg)

# torch first and by itself: with a version named, pip takes the CPU build where one of that version is at hand
$(SETUP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -e '.[dev]'
	$(BIN)/python -c 'import plait, pytest, torch, transformers'
	touch $(SETUP)

clean:
	rm -rf .venv build dist site demo .pytest_cache .ruff_cache .mypy_cache .hypothesis
