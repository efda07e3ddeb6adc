# make run    set up and run notebooks 01-05 (PROFILE=laptop, ARGS="--seed 1 --name mine")
# make test   set up, check style and stripped notebooks, run the tests on both cores
# Machines without make: the README lists the plain python commands.

PYTHON ?= python3
PROFILE ?= laptop
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
STAMP := $(VENV)/.set-up
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
STRIP := --extra-keys "metadata.papermill cell.metadata.papermill"

.PHONY: run test test-browser test-pack bench pretrained lab setup clean-venv help
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# //p' Makefile
	@echo "also: make setup | lab | bench | pretrained | test-browser | clean-venv"

run: setup
	$(PY) -m hjepa_lib run --profile $(PROFILE) $(ARGS)

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(if $(NOTEBOOKS),$(BIN)/nbstripout --verify $(STRIP) $(NOTEBOOKS))
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# make test-pack   unpack the Colab tarball where there is no .git, run it in a fresh environment
test-pack:
	@set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	./colab_pack.sh "$$folder/hjepa.tar.gz"; \
	tar -xzf "$$folder/hjepa.tar.gz" -C "$$folder"; cd "$$folder/hjepa"; \
	numbers=$$(ls notebooks | sed -n 's/^\(0[1-6]\)_.*\.ipynb$$/\1/p' | paste -s -d , -); \
	env -u HJEPA_OUTPUTS -u PYTHONPATH $(MAKE) run PROFILE=smoke ARGS="--name pack --notebooks $$numbers"; \
	grep -F "\"revision\": \"$$(cat VERSION)\"" outputs/pack/manifest.json

# The inspector in JupyterLab and Chromium: Playwright's own, or the binary named by CHROMIUM.
test-browser: setup
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[lab,dev,rl,browser]"
	[ -n "$$CHROMIUM" ] || $(PY) -m playwright install chromium
	$(PY) -m pytest -rP tests/browser $(ARGS)

bench: setup
	$(PY) -m hjepa_lib bench $(ARGS)

pretrained: setup
	$(PY) -m hjepa_lib pretrained $(ARGS)

lab: setup
	$(BIN)/jupyter lab notebooks $(ARGS)

setup: $(STAMP)
	@if git -C . rev-parse --is-inside-work-tree >/dev/null 2>&1 && [ -e .git ]; then \
	  git config filter.nbstripout.clean '"$(CURDIR)/$(PY)" -m nbstripout $(STRIP)'; \
	  git config filter.nbstripout.smudge cat; \
	  git config filter.nbstripout.required true; \
	  git config diff.ipynb.textconv '"$(CURDIR)/$(PY)" -m nbstripout -t $(STRIP)'; \
	else \
	  echo "no .git here: the nbstripout filter is not installed"; \
	fi

# Made again only when the dependencies change.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; set PYTHON=" if sys.version_info < (3, 11) else 0)'
	@[ -x $(PY) ] || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[lab,dev,rl]"
	@touch $(STAMP)

clean-venv:
	rm -rf $(VENV)
	-@git config --remove-section filter.nbstripout 2>/dev/null
	-@git config --remove-section diff.ipynb 2>/dev/null
