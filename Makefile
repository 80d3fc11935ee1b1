# `make` alone prints this menu.
.PHONY: help demo test test-slow fuzz bench lint clean
PYTHON ?= python3
BIN = .venv/bin
PYTEST = $(BIN)/python -m pytest -n auto --dist worksteal
SMALLER = $(if $(shell grep -m 1 avx512f /proc/cpuinfo),avx2,default)
PIP = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

help:
	@echo "make demo       set up .venv, then try the three small models in weights/"
	@echo "make test       set up .venv if need be, then run the tests"
	@echo "make test-slow  all cases of each test, and broken code that must fail: half an hour"
	@echo "make fuzz       damaged files, each of which must end in one clear line: a minute"
	@echo "make bench      speed beside transformers and the machine's limits: 20 minutes"
	@echo "make lint       ruff, over everything"
	@echo "make clean      remove .venv and what Python and the tools left behind"

demo: .venv/demo
	$(BIN)/python generate.py "What is the capital of France?"
	$(BIN)/python generate.py --model weights/nemotron-tiny "Once upon a time" --seed 1 --max-new-tokens 300 --quiet
	(cat weights/notes.txt; echo "What is the number of the harbour?") | $(BIN)/python generate.py --model weights/nemotron-h-tiny  # 2,000 words
	@echo
	@echo "Now type:  $(BIN)/python generate.py          to chat with the first model"
	@echo "           $(BIN)/python generate.py --help   to see all options"

test: .venv/test
	$(PYTEST) $(if $(DEVICE),--device $(DEVICE))
	@echo "once more, what depends on the kind of CPU, as on a smaller one:"
	ATEN_CPU_CAPABILITY=$(SMALLER) ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) -m kernels

test-slow: .venv/test
	THOROUGH=1 $(PYTEST)
	$(PYTEST) -m slow

fuzz: .venv/test
	$(BIN)/python tests/fuzz.py $(FUZZ)

bench: .venv/test
	$(BIN)/python tests/bench.py $(if $(DEVICE),--device $(DEVICE)) $(BENCH)

lint: .venv/test
	$(PIP) --quiet ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv build *.egg-info .pytest_cache .hypothesis .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/demo: pyproject.toml constraints.txt
	@$(PYTHON) nanomodels/cli/start.py || { echo "give another: make demo PYTHON=python3.12"; exit 2; } >&2
	@echo "setting up .venv (once; downloads PyTorch) ..."
	$(PYTHON) -m venv .venv
	$(PIP) -e .
	@touch $@

.venv/test: .venv/demo
	@echo "setting up the tests (once) ..."
	$(PIP) -e ".[test]"
	@touch $@
