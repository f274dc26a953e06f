# `make demo` shows the main job on this machine, `make test` runs the tests; each installs what it needs first.
#
# Variables, from the environment or the command line:
#   PYTHON        the interpreter that makes .venv (3.11 or later)
#   PIP_ARGS      further pip options, empty by default. A plain pip on Linux fetches the CUDA build of PyTorch;
#                 for the CPU build give the index that pytorch.org names for it, as an *extra* index.
#   TEST_WORKERS  processes that run tests side by side, one thread each
#   JOBS          rows of a benchmark, or compilers of gates-llama, side by side
#   PYTEST_ARGS   further pytest arguments, for example PYTEST_ARGS="-k metrics"

PYTHON ?= python3
PIP_ARGS ?=
TEST_WORKERS ?= 2
JOBS ?= 1
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt $(PIP_ARGS)
# Build tools (hatchling, setuptools) come from the same list; pip knows this option since 25.3, hence the upgrade below.
PIP_INSTALL_PROJECT = $(PIP_INSTALL) --build-constraint constraints.txt

# Stamps: written last, so an interrupted install runs again; older than pyproject.toml or constraints.txt means stale.
MADE := $(VENV)/.made
DEMO_INSTALLED := $(VENV)/.installed-demo
ALL_INSTALLED := $(VENV)/.installed-all

.DEFAULT_GOAL := help
.PHONY: help install demo test browser check gates-quick gates-full gates-mutants gates-alarms gates-llama ray benchmarks benchmarks-llm speed format interop-st5 interop-cohere docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(ALL_INSTALLED) ## fill .venv with all extras and the check tools

demo: $(DEMO_INSTALLED) ## train the embedded reranker from the embedded reader on the bundled knowledge base
	$(BIN)/rankwright demo

test: $(ALL_INSTALLED) ## run the tests; a skip that tests/allowed-skips.txt does not list fails the run
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# A package of the system, not of pip: browsers that Python packages fetch come from servers of their own.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
browser: ## install Debian's chromium, in which the pages are tested, where no Chromium is on the path (half a minute)
	@if command -v chromium || command -v chromium-browser || command -v google-chrome; then exit 0; \
	elif command -v apt-get >/dev/null && test -n "$(SUDO)" && ! command -v sudo >/dev/null; then \
		echo "Only root may install chromium, and there is no sudo here; wanted one of both. Run as root: apt-get install chromium" >&2; exit 3; \
	elif command -v apt-get >/dev/null; then \
		$(SUDO) apt-get update -q && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends chromium; \
	else echo "There is no apt-get here; wanted chromium, chromium-browser or google-chrome on the path. Install one as your system does; without it the tests of pages skip." >&2; exit 3; fi

check: $(ALL_INSTALLED) ## lint, formatting, types, import floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

GATES = $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist load $(PYTEST_ARGS)
# S1 and S2 put a server under load, and C2 a client: the clients and the server need both cores.
LOADED := tests/gates/test_gate_s1.py tests/gates/test_gate_c2.py
QUICK := $(filter-out tests/gates/test_gate_alarms.py $(LOADED),$(wildcard tests/gates/test_gate_*.py))
ALONE = $(BIN)/python -m pytest -m gates $(PYTEST_ARGS)

gates-quick: $(ALL_INSTALLED) ## the gates of reliability, in below 10 minutes: faults, kills, damaged files, resume
	GATES=quick $(ALONE) $(LOADED)
	GATES=quick $(GATES) -m gates $(QUICK)

gates-full: $(ALL_INSTALLED) ## the same in full numbers, and the Ray cluster, in below 60 minutes
	GATES=full $(ALONE) $(LOADED)
	GATES=full $(GATES) -m gates $(QUICK)
	GATES=full $(ALONE) tests/gates/test_ray_cluster.py

gates-mutants: $(ALL_INSTALLED) ## break the guarded code, one fault after the other, and see that its gate fails
	$(GATES) -m mutants tests/gates/test_mutants.py

gates-alarms: $(ALL_INSTALLED) ## plant ten kinds of failure in training and see which alarms go off, with the proof that the gate can fail
	$(BIN)/python -m pytest -m gates -n $(TEST_WORKERS) --dist loadfile tests/gates/test_gate_alarms.py

# The server is built from source, with little optimization, of which a model of a few thousand weights needs none.
gates-llama: $(ALL_INSTALLED) ## log probabilities against a real llama.cpp server, built in .venv-llama by a C++ compiler (12 minutes on one busy core)
	test -e .venv-llama/.made || ($(PYTHON) -m venv .venv-llama && CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) \
		CMAKE_ARGS="-DLLAVA_BUILD=OFF -DGGML_NATIVE=OFF -DCMAKE_C_FLAGS_RELEASE=-O1 -DCMAKE_CXX_FLAGS_RELEASE=-O1" \
		.venv-llama/bin/pip install --quiet --disable-pip-version-check $(PIP_ARGS) \
		'llama-cpp-python[server]==0.3.36' 'gguf==0.19.0' && touch .venv-llama/.made)
	$(ALONE) tests/gates/test_llama_server.py

ray: $(ALL_INSTALLED) ## rerank on a Ray cluster of two nodes on this machine, with a worker killed in the middle (2 minutes)
	$(ALONE) tests/gates/test_ray_cluster.py

# Runs one program of benchmarks/ and writes its page, also where a row has failed: the page then says what was not run.
measure = $(BIN)/python -m benchmarks.$(1) $(or $(2),run) || code=1; $(BIN)/python -m benchmarks.$(1) page || code=1

# The reader is trained once, on one machine: trained again it has other weights, and what the first one read could not
# be gone on with. Its weights stay there; a kept record of its offsets tells that it was trained. A part that fails
# does not keep the next ones from being measured.
OTHER_READER := another-reader/phase-1
benchmarks: $(ALL_INSTALLED) ## calls, cost and the paper's questions, for days on two cores; what is done is kept, and missing rows say so
	code=0; \
	$(call measure,cost); \
	$(call measure,calls,run --jobs $(JOBS)); \
	test -e benchmarks/work/$(OTHER_READER).pt || test -e benchmarks/results/kept/$(OTHER_READER).offsets.json.gz \
		|| $(BIN)/python -m benchmarks.embedded.train_reader --seed 1 --bf16 --out benchmarks/work/another-reader || code=1; \
	$(call measure,protocol,run --jobs $(JOBS)); \
	$(call measure,paper,run --jobs $(JOBS)); \
	$(call measure,choices,run --jobs $(JOBS)); \
	exit $$code

benchmarks-llm: $(ALL_INSTALLED) ## strategies, GRPO's step, the scheduler and reranking in bulk; an hour, anew but for the last, alone on the machine
	code=0; \
	$(BIN)/python -m benchmarks.strategies || code=1; \
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.grpo_cost --repeats 4 --steps 4 || code=1; \
	$(BIN)/python -m benchmarks.scheduler --repeats 2 || code=1; \
	$(call measure,batch); \
	exit $$code

speed: $(ALL_INSTALLED) ## scoring on this CPU beside its peers, below an hour; the machine must do nothing else
	$(BIN)/python -m benchmarks.speed peers
	$(BIN)/python -m benchmarks.speed run
	$(BIN)/python -m benchmarks.speed page

format: $(ALL_INSTALLED) ## let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

interop-st5: $(ALL_INSTALLED) ## check a saved model in sentence-transformers 5.1, in .venv-st5 (it needs transformers below 5)
	test -e .venv-st5/.made || ($(PYTHON) -m venv .venv-st5 && .venv-st5/bin/pip install --quiet $(PIP_ARGS) \
		"$$(grep '^torch==' constraints.txt)" 'sentence-transformers==5.1.2' 'transformers<5' && touch .venv-st5/.made)
	rm -rf build/interop-st5 && mkdir -p build/interop-st5
	$(BIN)/python -m tests.interop_st5 write build/interop-st5
	.venv-st5/bin/python tests/interop_st5.py check build/interop-st5

# Only what its tests of the server ask for: the server, the tests' runner, and the newest client.
interop-cohere: ## call the server with the newest cohere SDK, in .venv-cohere (make test has the version of constraints.txt)
	test -e .venv-cohere/.made || ($(PYTHON) -m venv .venv-cohere && .venv-cohere/bin/pip install --quiet $(PIP_ARGS) \
		--editable '.[serve]' 'cohere>=7' pytest pytest-timeout && touch .venv-cohere/.made)
	.venv-cohere/bin/python -c "import importlib.metadata as m; print('cohere', m.version('cohere'))"
	.venv-cohere/bin/python -m pytest $(PYTEST_ARGS) tests/test_clients.py -k test_cohere

docs: $(ALL_INSTALLED) ## write the pages that come from code (api, cli, settings) and check all pages
	$(BIN)/python docs/build.py

clean: ## remove caches and build outputs; .venv and runs/ stay
	rm -rf build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find rankwright tests benchmarks docs examples -name __pycache__ -type d -prune -exec rm -rf {} +

$(MADE):
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python {v[0]}.{v[1]} is too old; rankwright needs 3.11 or later. Run make with PYTHON=python3.11.")'
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) pip
	touch $@

$(DEMO_INSTALLED): pyproject.toml constraints.txt | $(MADE)
	$(PIP_INSTALL_PROJECT) --editable '.[train,embedded]'
	touch $@

$(ALL_INSTALLED): pyproject.toml constraints.txt | $(MADE)
	$(PIP_INSTALL_PROJECT) --editable '.[all,integrations]' --group dev
	touch $(DEMO_INSTALLED) $@
