# `make help` lists the targets. Each one sets up .venv first if it is missing or out of date.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Three workers keep two cores busy: the fast tests often wait for servers and processes.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
SEED   ?= 0
CORRUPTIONS ?= 2000
KILLS  ?= 300
RUN    ?= outputs/demo/$(shell date +%Y-%m-%d_%H-%M-%S)

WHAT   := -e '.[dev]' -c constraints.txt

.PHONY: help setup demo test test-fast test-slow test-all drill docs lint format clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rfdit needs Python 3.11 or newer; set PYTHON=")'
	@echo "1/3  making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@echo "2/3  getting uv, which installs faster than pip"
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet uv || echo "     there is no uv here; pip takes some minutes"
	@echo "3/3  installing rfdit and its packages, about 6 GB"
	@UV_SYSTEM_CERTS=true $(BIN)/uv pip install --python $(BIN)/python $(WHAT) || $(BIN)/python -m pip install $(WHAT)
	@touch $@
	@echo "Done. Activate it with: source $(BIN)/activate    or write $(BIN)/rfdit in place of rfdit"

setup: $(READY)  ## create .venv and install rfdit into it

demo: $(READY)  ## train a tiny model in minutes, sample from it and measure it
	$(BIN)/python train.py run_dir=$(RUN) experiment=demo trainer.max_time=00:12:00
	$(BIN)/python sample.py ckpt=$(RUN) prompts=docs/demo_prompts.txt sampler=heun sampler.steps=8 eval=prompt_accuracy

test: $(READY)  ## check style, types and format, and run the fast tests
	$(MAKE) --no-print-directory --jobs 2 lint test-fast

test-fast: $(READY)
	$(PYTEST) -n 3 --dist worksteal -m 'not slow'

# The fixtures of a file take up to minutes, so that its tests stay together; tests/conftest.py orders the files.
test-slow: $(READY)  ## run the slow tests, with the types of all packages checked
	RFDIT_TEST_TYPES=all $(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder -m slow

test-all: test test-slow  ## run everything that CI runs

# SEED, CORRUPTIONS, KILLS; ONLY=NAME,... for some kinds of files or commands, NUMBER=N for one corruption again.
drill: $(READY)  ## damage every kind of file and kill every command, as docs/reliability.md describes
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.system.drill seed=$(SEED) corruptions=$(CORRUPTIONS) kills=$(KILLS) \
		$(if $(ONLY),only="$(ONLY)") $(if $(NUMBER),number=$(NUMBER))

docs: $(READY)  ## build the documentation into site/; open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: $(READY)  ## check the code with ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## rewrite the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv and caches; runs are kept
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist site *.egg-info
