# `make help` lists the targets. Each one sets up .venv first if it is missing or out of date.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# A file's tests share what its fixtures make; tests/conftest.py orders the files.
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder
RUN    ?= outputs/demo/$(shell date +%Y-%m-%d_%H-%M-%S)

.PHONY: help setup demo test quick lint format clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rfdit needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	touch $@

setup: $(READY)  ## create .venv and install rfdit into it

demo: $(READY)  ## train a tiny model for at most 5 minutes, sample from it, measure it
	$(BIN)/python train.py run_dir=$(RUN) trainer.max_time=00:00:04:45
	$(BIN)/python sample.py ckpt=$(RUN) prompts=docs/demo_prompts.txt eval=prompt_accuracy

test: $(READY) lint  ## everything that CI runs: lint, types, format, all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS)

quick: $(READY)  ## the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) -m 'not slow'

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## let ruff rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv and caches; runs are kept
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
