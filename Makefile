# The commands a newcomer types. `make` alone lists them.
SHELL := bash
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
START := $(shell date +%s)
# XLA runs programs this small on one core. Two devices, over which the batch is split as over any others, use two.
export JAX_NUM_CPU_DEVICES ?= 2

.PHONY: help quickstart recipe smoke test proof targets lint clean

help: ## list the commands
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

quickstart: $(INSTALLED) ## train a small TroL on real pictures, measure it and show it
	$(RUN) -m launch.train --config=configs/quickstart.py:tower --workdir=runs/tower
	$(RUN) -m launch.train --config=configs/quickstart.py --workdir=runs/quickstart
	$(RUN) -m launch.evaluate --checkpoint=runs/quickstart
	@echo "make quickstart: $$(($$(date +%s) - $(START))) s in all; results are in runs/quickstart (to start anew, remove runs)"

# What was made of another than what is there now goes: after step 1 is trained anew, all that comes after it.
after = @[ runs/recipe/$(1) -nt runs/recipe/$(2) ] || rm -rf runs/recipe/$(3)

recipe: $(INSTALLED) ## the recipe's two steps, small: base, projector and gates, QLoRA, export; with a table
	$(RUN) -m launch.train --config=configs/quickstart.py:tower --workdir=runs/tower
	$(RUN) -m launch.train --config=configs/tiny_recipe.py:base --workdir=runs/recipe/base
	$(call after,step1/checkpoints,base/checkpoints,step1)
	$(RUN) -m launch.train --config=configs/tiny_recipe.py:step1 --workdir=runs/recipe/step1
	$(call after,step1_whole/checkpoints,step1/checkpoints,step1_whole)
	test -d runs/recipe/step1_whole || $(RUN) -m launch.merge --checkpoint=runs/recipe/step1 --dst=runs/recipe/step1_whole
	$(call after,step2/checkpoints,step1_whole/checkpoints,step2)
	$(RUN) -m launch.train --config=configs/tiny_recipe.py:step2 --workdir=runs/recipe/step2
	$(call after,step2_whole/checkpoints,step2/checkpoints,step2_whole)
	test -d runs/recipe/step2_whole || $(RUN) -m launch.merge --checkpoint=runs/recipe/step2 --dst=runs/recipe/step2_whole
	$(call after,released,step2_whole/checkpoints,released)
	test -d runs/recipe/released || $(RUN) -m launch.convert --to=hf --src=runs/recipe/step2_whole --dst=runs/recipe/released
	$(call after,again/checkpoints,released,again)
	test -d runs/recipe/again || $(RUN) -m launch.convert --to=jax --src=runs/recipe/released --dst=runs/recipe/again
	for run in base step1_whole step2_whole again; do \
	  $(RUN) -m launch.evaluate --checkpoint=runs/recipe/$$run --system= || exit; done
	$(RUN) -m launch.bench recipe --dir=runs/recipe
	@echo "make recipe: $$(($$(date +%s) - $(START))) s in all; results are in runs/recipe (to start anew, remove it)"

smoke: $(INSTALLED) ## the quickstart and a study with a few steps, in a folder that is removed afterwards
	@set -e; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	$(RUN) -m launch.train --config=configs/quickstart.py:tower,smoke --workdir="$$dir/tower"; \
	$(RUN) -m launch.train --config=configs/quickstart.py:smoke --workdir="$$dir/run" --config.start_from="$$dir/tower"; \
	$(RUN) -m launch.evaluate --checkpoint="$$dir/run" --limit=500; \
	$(RUN) -m launch.study --study=passes --smoke --seeds=1 --rows=one,two --tower="$$dir/tower" --root="$$dir/study"; \
	echo "make smoke: $$(($$(date +%s) - $(START))) s in all"

test: $(INSTALLED) ## run the tests
	$(RUN) -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow"

proof: $(INSTALLED) ## run the tests that take minutes: every sharding against one device, several processes
	$(RUN) -m pytest -n 2 --no-loadscope-reorder -m slow

targets: $(INSTALLED) ## compile a tiny model for TPU and GPU, by their compilers, which go into .targets (1.1 GB)
	$(RUN) -m pip install --quiet --disable-pip-version-check --upgrade --no-deps --target=.targets \
	  -r requirements-tpu.txt -r requirements-gpu.txt
	PYTHONPATH=.targets $(RUN) -m pytest tests/test_verdict.py -m slow

lint: $(INSTALLED) ## check style and formatting
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

clean: ## remove .venv, .targets and caches; runs/ stays
	rm -rf $(VENV) .targets build dist *.egg-info .pytest_cache .ruff_cache

# One environment for everything, made again only when a requirement changes.
$(INSTALLED): requirements.txt requirements-serve.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or \
	  sys.exit("Python 3.11 to 3.13 is needed, this is %d.%d: name another with make PYTHON=python3.12" % v)'
	@echo "installing into $(VENV) (one to two minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	@touch $@
