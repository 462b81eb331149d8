# Two commands do everything from a fresh clone:  make demo   and   make test.
# They make .venv and install into it on first use. To use an environment of yours instead: make demo PYTHON=/path/to/python
# (nothing is installed then; what is missing is named).

VENV := .venv
ifdef PYTHON
  READY := check-environment
  override PYTHON := $(PYTHON)
else
  PYTHON := $(VENV)/bin/python
  READY := $(VENV)/.installed
endif
BASE_PYTHON ?= python3
# CI installs requirements.lock, exact versions with hashes, instead.
REQUIREMENTS ?= requirements-dev.txt
DEMO_QUICK ?=
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: help demo test test-all lint types check-environment clean-demo

help:
	@echo "make demo               train -> prune to 2x -> finetune -> validate -> report on the embedded demo set"
	@echo "make demo DEMO_QUICK=1  the same in about two minutes (too short for good accuracy)"
	@echo "make test               lint, types, unit and flow tests"
	@echo "make test-all           the same and the slow tests"
	@echo "PYTHON=/path/to/python  use that environment as it is instead of .venv"

demo: $(READY)
	@$(PYTHON) demo.py $(if $(filter-out 0,$(DEMO_QUICK)),--quick)

test: lint types
	@echo "==> unit and flow tests (two processes, one torch thread each)"
	@OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile -m "not slow" --durations 15

test-all: lint types
	@OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile --durations 30

lint: $(READY)
	@echo "==> lint and format"
	@$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check .

types: $(READY)
	@echo "==> types"
	@$(PYTHON) -m basedpyright --level error --pythonpath $$($(PYTHON) -c 'import sys; print(sys.executable)')

check-environment:
	@$(PYTHON) -c "import torch, torchvision, torch_pruning, cv2, yaml, matplotlib, tqdm, pycocotools" \
	  || { echo "$(PYTHON) lacks a requirement: run '$(PYTHON) -m pip install -r requirements-dev.txt'"; exit 2; }

$(VENV)/.installed: requirements.txt requirements-export.txt $(REQUIREMENTS)
	@echo "==> installing into $(VENV): several GB with PyTorch, a few minutes"
	@test -x $(VENV)/bin/python || $(BASE_PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $(REQUIREMENTS)
	@touch $@

clean-demo:
	rm -rf runs/demo datasets/demo
