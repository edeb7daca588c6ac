# `make demo` and `make test` set everything up by themselves; see README.md.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint types notebooks bench tables image-tables controllers clean

demo: $(VENV)/.core
	$(BIN)/nsr-gym compare --name demo

test: $(VENV)/.test
	$(BIN)/python -m pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Type checkers do not follow setuptools' package-dir; they see the packages in a built copy.
types: $(VENV)/.test
	rm -rf build/types && mkdir -p build/types
	cp -r nsr_gym build/types/nsr_gym
	cp -r envs build/types/nsr_gym/envs
	cp -r agents build/types/nsr_gym/agents
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p nsr_gym

notebooks: $(VENV)/.notebooks
	NSR_GYM_FAST=1 MPLBACKEND=Agg $(BIN)/python -m pytest -p no:cacheprovider --nbmake --nbmake-timeout=600 notebooks

bench: $(VENV)/.peft
	$(BIN)/python -m benchmarks

# The tables of recorded visits that ship with the package, about two minutes each on two cores.
FAMILIES := permutation labels partial rotation
tables: $(VENV)/.core
	@for family in $(FAMILIES); do for split in train test; do \
		name=digits-$$family-$$split; \
		$(BIN)/nsr-gym record NSR/CyclicDigits-v0 --set tasks=$$family --set split=$$split \
			--output build/tables/$$name && rm -rf nsr_gym/tables/$$name && \
			mv build/tables/$$name nsr_gym/tables/$$name || exit 1; done; done

# Those of image streams; the data must lie in NSR_GYM_DATA, and it takes about half an hour.
PLAN := --set ranks=[2,8] --fresh-chains 3 --foreign-chains 1 --levels 4 --branch 0 --batch 20
image-tables: $(VENV)/.core
	@for split in test train; do \
		$(BIN)/nsr-gym record NSR/SplitCIFAR100-v0 --set split=$$split $(PLAN) --sources 5 \
			--output build/tables/split-cifar100-10-$$split && \
		$(BIN)/nsr-gym record NSR/FiveDatasets-v0 --set manifest=offline5 --set split=$$split $(PLAN) \
			--sources 4 --output build/tables/offline5-$$split || exit 1; \
		for name in split-cifar100-10-$$split offline5-$$split; do \
			rm -rf nsr_gym/tables/$$name && mv build/tables/$$name nsr_gym/tables/$$name || exit 1; \
		done; done

# The trained controllers that ship with the package, from the hyper-parameter files, seed 0.
controllers: $(VENV)/.core
	$(BIN)/python -m nsr_gym.agents.ship

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python found: install Python 3.11 or later, or set PYTHON=/path/to/python."; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or later is needed; $(PYTHON) is $$("$(PYTHON)" -V 2>&1). Set PYTHON=/path/to/python."; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) lacks the venv module (Debian and Ubuntu: apt-get install python3-venv)."; exit 1; }
	"$(PYTHON)" -m venv $(VENV)

define install
	@echo "installing into $(VENV) (needs a package index; minutes the first time) ..."
	@$(INSTALL) -e '.$(1)' || { \
		echo "The installation failed: the message above names the package. Is a package index reachable?"; exit 1; }
	@touch $@
endef

$(VENV)/.core: $(VENV)/bin/python pyproject.toml constraints.txt
	$(call install,)

$(VENV)/.test: $(VENV)/bin/python pyproject.toml constraints.txt
	$(call install,[test])

$(VENV)/.notebooks: $(VENV)/bin/python pyproject.toml constraints.txt
	$(call install,[notebooks])

$(VENV)/.peft: $(VENV)/bin/python pyproject.toml constraints.txt
	$(call install,[peft])
