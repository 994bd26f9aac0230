# Two commands do everything from a fresh clone: `make dry-run` and `make test`.
# Each target makes .venv by itself; a second run installs nothing.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv dry-run seal test quick check bench gpu parity parity-now parity-next .rehearsed-here constraints hooks clean

VENV     := .venv
PY       := $(VENV)/bin/python
STAMP    := $(VENV)/.installed
CANDIDATES := python3 python3.12 python3.13 python3.11 python
CANDIDATES_312 := python3.12 python3 python $(wildcard $(HOME)/.pyenv/versions/3.12*/bin/python3.12)
CANDIDATES_313 := python3.13 python3 python $(wildcard $(HOME)/.pyenv/versions/3.13*/bin/python3.13)

# dry-run: the user's own sample images, or phantoms; both studies of the default seed have severe findings
DATA     ?=
STUDIES  ?= 2
SEED     ?= 20242
SAMPLE   := dist/sample
RUN      ?=
KAGGLE_LIKE ?=
ROOT_OF_DATA = $(if $(strip $(DATA)),$(DATA),$(SAMPLE))
SAMPLE_STAMP = $(SAMPLE)/.made-$(STUDIES)-$(SEED)
DRY_RUN  = -m lumbar_publish.rehearsal.dry_run --data "$(ROOT_OF_DATA)" $(if $(RUN),--run "$(RUN)") \
           $(if $(filter-out 0 no false,$(KAGGLE_LIKE)),--kaggle-like)

# quick: what decides most, without whole runs, phantoms and fuzzing
QUICK := tests/docs --ignore=tests/dicom/test_fuzz.py tests/dicom \
         $(addprefix tests/kernel/test_,$(addsuffix .py,isolation metric tables text files geometry manifest names code_hash))

# parity: the versions of the notebook image, as it is and as upstream has it
PARITY_VENV  := .venv-parity
NEXT_VENV    := .venv-parity-next
PARITY_STAMP := $(PARITY_VENV)/.installed
NEXT_STAMP   := $(NEXT_VENV)/.installed
PARITY_TESTS ?= $(wildcard tests/dicom tests/kernel)

export NUMBA_CACHE_DIR ?= $(CURDIR)/.numba_cache
unexport PYTHONPATH
# A process that may keep no bytecode compiles all of torch each time that it imports it: 13 s of a core in place of 4.
unexport PYTHONDONTWRITEBYTECODE

help:
	@echo "make dry-run          install, make two phantom studies, seal, run the notebook offline as Kaggle would"
	@echo "make dry-run DATA=p   the same on your own studies (a competition folder); KAGGLE_LIKE=1 adds Kaggle's limits"
	@echo "make venv             make .venv and install into it (every other target does that by itself)"
	@echo "make test             every test, and the coverage (PYTEST_ARGS='-m \"not slow\"' for the quick ones)"
	@echo "make quick            the tests to run before a commit"
	@echo "make check            ruff (lint and format) and mypy"
	@echo "make seal             stage dist/dataset (RUN=runs/mine for your own weights)"
	@echo "make bench            the figures that docs/measurements.md quotes"
	@echo "make gpu              the tests that need a GPU, then model2 and strong at full size through benchmarks/train.py"
	@echo "make parity           kernel tests and dry run with the versions of Kaggle's image, the present and the next"
	@echo "make parity-now       only the present one (needs Python 3.12; PYTHON312=)"
	@echo "make parity-next      only the next one (needs Python 3.13; PYTHON313=)"
	@echo "make constraints     pin what is installed in .venv (constraints.txt)"
	@echo "make hooks | clean    install the pre-commit hook | remove dist and caches"

# ---- environments -------------------------------------------------------------------------------------------------

# $(call environment,folder,interpreter,constraints): a venv, then uv inside it; pip takes over where uv cannot reach
# the index (uv does not read pip's configuration).
define environment
	@"$(1)/bin/python" -c '' 2>/dev/null || "$(2)" -m venv --clear "$(1)" || { \
	  echo "error: $(2) -m venv failed: Python's venv module is missing (on Debian: apt install python3-venv)" >&2; exit 1; }
	@"$(1)/bin/python" -m uv --version >/dev/null 2>&1 || "$(1)/bin/python" -m pip install --quiet -c constraints.txt uv
	@echo "installing into $(1) (the first time downloads several GB)"
	@"$(1)/bin/python" -m uv pip install --quiet --python "$(1)/bin/python" -c $(3) -e '.[dev]' || \
	  "$(1)/bin/python" -m pip install --quiet -c $(3) -e '.[dev]'
endef

# $(call find,variable's value,candidates,test,message)
define find
found="$(1)"; \
if [ -n "$$found" ]; then "$$found" -c '$(3)' 2>/dev/null || { echo "error: $$found: $(4)" >&2; exit 1; }; \
else for p in $(2); do "$$p" -c '$(3)' >/dev/null 2>&1 && { found="$$p"; break; }; done; fi; \
[ -n "$$found" ] || { echo "error: $(4)" >&2; exit 1; }; \
echo "$$found"
endef
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
IS_312     := import sys; sys.exit(sys.version_info[:2] != (3, 12))
IS_313     := import sys; sys.exit(sys.version_info[:2] != (3, 13))

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@py=$$($(call find,$(PYTHON),$(CANDIDATES),$(NEW_ENOUGH),no Python 3.11 or newer found; name one with PYTHON=/path/to/python3)) && \
	  $(MAKE) --no-print-directory .install FOLDER=$(VENV) INTERPRETER="$$py" CONSTRAINTS=constraints.txt
	@touch $@

$(PARITY_STAMP): pyproject.toml constraints-kaggle.txt
	@py=$$($(call find,$(PYTHON312),$(CANDIDATES_312),$(IS_312),no Python 3.12 found (the version of the notebook image); name one with PYTHON312=/path/to/python3.12)) && \
	  $(MAKE) --no-print-directory .install FOLDER=$(PARITY_VENV) INTERPRETER="$$py" CONSTRAINTS=constraints-kaggle.txt
	@touch $@

$(NEXT_STAMP): pyproject.toml constraints-kaggle-next.txt
	@py=$$($(call find,$(PYTHON313),$(CANDIDATES_313),$(IS_313),no Python 3.13 found (the version of the next notebook image); name one with PYTHON313=/path/to/python3.13)) && \
	  $(MAKE) --no-print-directory .install FOLDER=$(NEXT_VENV) INTERPRETER="$$py" CONSTRAINTS=constraints-kaggle-next.txt
	@touch $@

.PHONY: .install
.install:
	$(call environment,$(FOLDER),$(INTERPRETER),$(CONSTRAINTS))

# ---- the main job -------------------------------------------------------------------------------------------------

$(SAMPLE_STAMP): $(wildcard src/lumbar_phantom/*.py) | $(STAMP)
	@rm -rf $(SAMPLE)
	$(PY) -m lumbar_phantom --out $(SAMPLE) --studies $(STUDIES) --seed $(SEED) --split test
	@touch $@

.PHONY: .say-how-long
.say-how-long:
	@echo "dry run: 2 to 5 minutes once all is installed (the first time also downloads about 6 GB)"

dry-run: .say-how-long $(STAMP) $(if $(strip $(DATA)),,$(SAMPLE_STAMP))
	$(PY) $(DRY_RUN)

seal: $(STAMP)
	$(PY) build_dataset.py $(if $(RUN),--run "$(RUN)")

# ---- proofs -------------------------------------------------------------------------------------------------------

# As many workers of pytest as there are cores. A file's tests stay together, since they share what is costly to make;
# tests/conftest.py puts the slow files first, so that no worker is left with one at the end. A run of all tests ends
# with the coverage of branches, and fails when that falls below the floor in pyproject.toml.
WORKERS  ?= auto
COVERAGE := $(if $(filter -m -k --lf --ff tests/% -m%,$(PYTEST_ARGS)),,--cov --cov-report=)
test: $(STAMP)
	$(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(COVERAGE) $(PYTEST_ARGS)

quick: $(STAMP)
	$(PY) -m pytest -q -m "not slow" $(QUICK)

check: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(STAMP)
	@for script in benchmarks/*.py; do echo "== $$script"; $(PY) "$$script" || exit 1; done

# what only a GPU shows: half precision, several devices, full sizes (BENCH_ARGS='--studies 8 --loaders 12')
gpu: $(STAMP)
	@$(PY) -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "error: make gpu: found no CUDA device, expected one")'
	$(PY) -m pytest -q -m gpu tests/train/test_train_gpu.py tests/kernel/test_studies_in_flight.py
	$(PY) benchmarks/train.py --recipes model2,strong $(BENCH_ARGS)

# $(call parity,environment,name): its tests, then the rehearsal of what .rehearsed-here has sealed
define parity
	NUMBA_CACHE_DIR=$(CURDIR)/.numba_cache/$(2) $(1)/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PARITY_TESTS)
	NUMBA_CACHE_DIR=$(CURDIR)/.numba_cache/$(2) $(1)/bin/python $(DRY_RUN) --out dist/$(2) --keep-seal \
	  --agree-with dist/dry-run/kaggle/working/submission.csv
endef

.rehearsed-here: $(STAMP) $(if $(strip $(DATA)),,$(SAMPLE_STAMP))
	$(PY) $(DRY_RUN)

parity: parity-now parity-next

parity-now: .rehearsed-here $(PARITY_STAMP)
	$(call parity,$(PARITY_VENV),parity)

parity-next: .rehearsed-here $(NEXT_STAMP)
	$(call parity,$(NEXT_VENV),parity-next)

constraints: $(STAMP)
	$(PY) tools/constraints.py

hooks: $(STAMP)
	$(PY) -m uv pip install --quiet --python $(PY) pre-commit && $(VENV)/bin/pre-commit install

clean:
	rm -rf dist .numba_cache .pytest_cache .mypy_cache .ruff_cache .coverage .coverage.*
