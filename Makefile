# Group Preference Optimization, dataset-first. `make help` lists every target.
TASK  ?= text
MODEL ?= tiny
MODE  ?= offline
ARGS  ?=
# As it is, and by the environment: neither make nor the shell expands what stands in a query.
override Q := $(value Q)
export Q
PYTHON ?= python3
RECIPE = recipes/$(TASK)-$(MODEL).yaml
BIN    = .venv/bin
READY  = .venv/.ready

.DEFAULT_GOAL := help
# Bytecode is kept even where the environment says otherwise: every command imports thousands of modules.
unexport PYTHONDONTWRITEBYTECODE
RUN   ?=
.PHONY: test-faults help setup shards audit sql measure verify show train watch eval export demo test test-slow lint docs bench bench-gpu tiny clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo; echo "  TASK=text|count|align  MODEL=tiny|sd35m|...  MODE=offline|online  RUN=name  ARGS='--key value ...' (any key of the recipe)"

setup: $(READY) ## build .venv from pinned requirements (every target does this when needed)

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, found {v[0]}.{v[1]}; use make PYTHON=python3.12 ...")'
	@echo "setting up .venv (once; a few minutes, about 7 GB on Linux)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q --no-deps --no-compile -r requirements.txt
	@# OpenCV's desktop build needs libGL; without it the headless build of the same version takes its place.
	@$(BIN)/python -c 'import cv2' 2>/dev/null || $(BIN)/python -m pip install -q --no-deps --no-compile --force-reinstall \
	  "opencv-contrib-python-headless==$$(sed -n 's/^opencv-contrib-python==//p' requirements.txt)"
	@$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $(READY)

shards: $(READY) ## draw groups, measure them, write shards (resumes)
	@$(BIN)/gpo-data shards $(RECIPE) $(ARGS)

audit: $(READY) ## what is in a dataset: a table, and an HTML page beside the shards
	@$(BIN)/gpo-data audit $(RECIPE) $(ARGS)

sql: $(READY) ## query the lake: Q="select ...", or an interactive prompt without Q
	@$(BIN)/gpo-data sql $(RECIPE) $(if $(Q),"$$Q") $(ARGS)

measure: $(READY) ## add the recipe's evaluators to shards already drawn
	@$(BIN)/gpo-data measure $(RECIPE) $(ARGS)

verify: $(READY) ## prove a dataset's bytes; ARGS="--redraw 8" draws members again
	@$(BIN)/gpo-data verify $(RECIPE) $(ARGS)

show: $(READY) ## picture grid of groups with rewards
	@$(BIN)/gpo-data show $(RECIPE) $(ARGS)

train: $(READY) ## train on the frozen shards, or MODE=online on what the policy draws (resumes)
	@$(BIN)/gpo-train fit $(RECIPE) --mode $(MODE) $(if $(RUN),--run $(RUN)) $(ARGS)

watch: $(READY) ## the iterations of an online run: a table, and curves as a picture
	@$(BIN)/gpo-train watch $(RECIPE) $(if $(RUN),--run $(RUN)) $(ARGS)

eval: $(READY) ## the newest run (or RUN=name) against its base on held-out prompts
	@$(BIN)/gpo-train eval $(RECIPE) --mode $(MODE) $(if $(RUN),--run $(RUN)) $(ARGS)

export: $(READY) ## the policy for diffusers: OUT=folder
	@$(BIN)/gpo-train export $(RECIPE) --mode $(MODE) $(if $(RUN),--run $(RUN)) --out $(OUT) $(ARGS)

demo: ## shards, audit, train and eval in one command
	@$(MAKE) --no-print-directory shards audit train eval

test: $(READY) ## the test suite, in a process a core, four at most; ARGS="-n 0" is one
	@$(BIN)/python -m pytest -q -m "not slow" -n auto --dist worksteal $(ARGS)

test-slow: $(READY) ## the long suites: 50 kills, every cut of a tar
	@$(BIN)/python -m pytest -q -m slow $(ARGS)

test-faults: $(READY) ## kill campaigns, hours: ARGS="--kills 100 --only online"; docs/reliability.md
	@$(BIN)/python -m tests.faults $(ARGS)

lint: $(READY) ## ruff and mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: $(READY) ## docs/ as a site, docs/_build/html; a broken link is an error
	@$(BIN)/python -m sphinx -E -W --keep-going -q docs docs/_build/html && echo docs/_build/html/index.html

bench: $(READY) ## shares of the machine's own product; drawing and training against hand-written loops; SQL over 10 million members
	@$(BIN)/python -m tests.bench.machine && $(BIN)/python -m tests.bench.draw && $(BIN)/python -m tests.bench.train && $(BIN)/python -m tests.bench.catalog

bench-gpu: $(READY) ## real sizes on a GPU: drawing, a step, an online iteration; ARGS="--tiny" tries it on the CPU
	@$(BIN)/python -m tests.bench.gpu $(ARGS)

tiny: $(READY) ## train the tiny world's models from nothing (hours on 2 cores)
	@$(BIN)/python -m gpo_data.tiny recipes/tiny.yaml --out runs/tiny $(ARGS)

clean: ## remove .venv and caches; datasets stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache docs/_build *.egg-info
