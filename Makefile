# Two commands on a fresh machine (Debian 12 with python3, pip, git, make): `make run` and `make test`.
#   make run PIP_FLAGS="--index-url URL"     any flag of pip, for example the index that serves the CPU build of torch
#   make test PYTEST_FLAGS="-k lineage"      any flag of pytest

PYTHON ?= python3
PIP_FLAGS ?=
PYTEST_FLAGS ?= -q -n 4 --dist loadfile --no-loadscope-reorder
SHELL := /bin/sh
BIN := .venv/bin
INSTALLED := .venv/.installed
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: run test test-long check lint repro install install-vllm install-harnesses install-trl lock clean

run: $(INSTALLED) bubblewrap
	@$(BIN)/touchstone run

# DVC starts stages, and kind `command` its programs, with the `python` of PATH; Debian has none of its own
repro test test-long check: export PATH := $(CURDIR)/$(BIN):$(PATH)
repro: $(INSTALLED) bubblewrap
	@$(BIN)/dvc repro

test: $(INSTALLED) bubblewrap lint
	$(BIN)/python -m pytest -m "not long" $(PYTEST_FLAGS)

# What repeats a behaviour at more points: more instants of kill -9, more shapes, more rows.
test-long: $(INSTALLED) bubblewrap
	$(BIN)/python -m pytest -m long $(PYTEST_FLAGS)

# The fast part: everything but what starts whole pipelines, many processes or long training.
SLOW := tests/flows tests/rl tests/curation tests/merging tests/verifiers/test_verifiers_attacks.py tests/verifiers/test_verifiers_code.py \
  tests/test_finishing.py tests/test_environment.py tests/test_exactness.py tests/evaluation/test_evaluation_stage.py tests/checks
check: $(INSTALLED) bubblewrap
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest -m "not long" $(PYTEST_FLAGS) $(addprefix --ignore=,$(SLOW))

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/pyright

install: $(INSTALLED)

# A venv without its own pip needs no package python3-venv; the pip of the system fills it.
$(INSTALLED): requirements/lock.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Touchstone needs Python 3.11 or newer; set PYTHON=... to one" >&2; exit 2; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv 2>/dev/null || $(PYTHON) -m venv --clear --without-pip .venv
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m pip --python $(BIN)/python install --quiet pip
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -r requirements/lock.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# Model-written code is judged in bubblewrap and nowhere else.
.PHONY: bubblewrap
bubblewrap:
	@command -v bwrap >/dev/null || { echo "installing bubblewrap, the sandbox for model-written code"; \
	  { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq bubblewrap; } >/dev/null 2>&1; } || \
	  { echo "bubblewrap is missing and apt-get could not install it (root or sudo is needed): install the package 'bubblewrap' by hand" >&2; exit 2; }

# vLLM, which pins some packages lower than the lock does, without the torchvision, torchaudio and torchcodec builds it asks for: they do
# not match the CPU torch.
VLLM_PINS := llvmlite numba numpy setuptools
SPACE := $(subst ,, )
install-vllm: $(INSTALLED)
	@grep -vE '^($(subst $(SPACE),|,$(VLLM_PINS)))==' requirements/lock.txt > .venv/vllm.txt
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c .venv/vllm.txt --editable '.[vllm]'
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec

# TRL and a torch of its own, for overlays/trl_grpo.yaml and overlays/trl_sft.yaml.
install-trl:
	$(call fill,.venv-trl,trl==1.16.0 transformers==5.24.0 torch==2.13.0)

# Virtual environments of other projects, whose packages would not stand beside ours: tests of RL's environments use them where they are.
install-harnesses:
	$(call fill,.venv-verifiers03,verifiers~=0.3.1)
	$(call fill,.venv-verifiers04,verifiers~=0.4.0 uv)
	$(call fill,.venv-openenv,openenv==0.10.0)

define fill
$(PYTHON) -m venv --clear --without-pip $(1)
$(PYTHON) -m pip --python $(1)/bin/python install --quiet $(PIP_FLAGS) $(2)
endef

# Write the lock from this environment, after an upgrade that has passed `make test`.
lock: $(INSTALLED)
	@{ grep '^#' requirements/lock.txt; $(BIN)/python -m pip freeze --all --exclude-editable --exclude pip --exclude touchstone | sed 's/^\(torch==[0-9.]*\)+.*/\1/'; } > requirements/lock.new
	@mv requirements/lock.new requirements/lock.txt

clean:
	rm -rf .venv .venv-verifiers03 .venv-verifiers04 .venv-openenv .venv-trl .pytest_cache .ruff_cache .import_linter_cache *.egg-info
