# Set-up needs Python 3.11 and a package index that has the CPU build of torch 2.13. Where the default index
# has it only for CUDA, name another index here, the only place for that choice:
#   make demo PIP_ARGS="--extra-index-url <index with torch 2.13.0+cpu>"
PYTHON ?= python3.11
PIP_ARGS ?=
DEMO_ARGS ?=
LOCK ?= requirements.lock
BIN := .venv/bin

.PHONY: help setup demo test deploy-tools chromium check format proto client chart lock clean
help:
	@echo "make demo    set up, then show what memserve does on a small real model (6 minutes the first time)"
	@echo "make test    set up, then run every test; installs Chromium where it is missing and apt-get may"
	@echo "make check   lint, types, import contracts, generated code and docs"
	@echo "make proto   generate memserve/pb from protos/"
	@echo "make client  generate memserve/client/_sync from memserve/client/_async"
	@echo "make lock    resolve the lock files again"
	@echo "make chart   generate the Helm chart's schema, and its copies of deploy/"

# compileall has as many processes as there are cores, and pip has one. It fails for a package's files of a
# newer Python, which is no fault.
setup: .venv/installed
.venv/installed: $(LOCK) pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --no-deps --no-compile $(PIP_ARGS) -r $(LOCK) || \
	  { echo "set-up failed; if torch was not found, see PIP_ARGS at the head of the Makefile" >&2; exit 1; }
	$(BIN)/pip install --no-deps --no-build-isolation --editable .
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	touch $@

demo: setup
	$(BIN)/memserve demo $(DEMO_ARGS)

# In two processes at once (tests/run.py).
test: setup deploy-tools chromium
	$(BIN)/python -m tests.run

# Prometheus and promtool, a redis-server that speaks TLS, and nft.
deploy-tools:
	deploy/tools.sh

# For the tests of the page. Does nothing where Chromium is there.
chromium:
	tests/install_chromium.sh

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python protos/generate.py --check
	$(BIN)/python memserve/client/generate.py --check
	$(BIN)/python docs/generate.py --check
	$(BIN)/python helm/generate.py --check

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: setup
	$(BIN)/python protos/generate.py

client: setup
	$(BIN)/python memserve/client/generate.py

chart: setup
	$(BIN)/python helm/generate.py

# Complete and pinned; they are installed with --no-deps. The CUDA lock is resolved, not run, by this
# project's CI.
RESOLVE = $(UV) pip compile --quiet --no-annotate --no-header --python-version 3.11 \
  --python-platform x86_64-manylinux_2_28
COMPILE = $(RESOLVE) pyproject.toml
UV ?= uv
# Where the CPU build of torch is found, if not in the default index.
UV_ARGS ?=
lock:
	$(COMPILE) $(UV_ARGS) --extra cpu --extra embedded --extra dev \
	  --override deploy/locks/cpu-overrides.txt -o requirements.lock
	$(COMPILE) $(UV_ARGS) --extra cpu --constraint requirements.lock \
	  --override deploy/locks/cpu-overrides.txt -o deploy/locks/cpu.lock
	$(COMPILE) --extra gateway -o deploy/locks/gateway.lock
	$(COMPILE) --extra cuda --extra embedded -o deploy/locks/cuda.lock
	$(RESOLVE) deploy/locks/build.in --constraint requirements.lock -o deploy/locks/build.lock

clean:
	rm -rf .venv
