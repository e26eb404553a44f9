VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
NATIVE := $(wildcard src/elman/kernels/*/*.h src/elman/kernels/*/*.cpp)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help setup test demo bench lint format types stubs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s%s\n", $$1, $$2 }' Makefile

setup: $(INSTALLED) ## create .venv and install Elman into it, in place

test: $(INSTALLED) ## run every test and every documented example
	$(BIN)/python -m pytest

demo: $(INSTALLED) ## train and serve on Japanese Vowels; results go to build/demo
	$(BIN)/python -m examples.japanese_vowels.demo

bench: $(INSTALLED) ## measure and print the table of benchmarks
	$(BIN)/python -m benchmarks.run

lint: $(INSTALLED) ## check style and layout
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(NATIVE)

format: $(INSTALLED) ## lay the code out
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(NATIVE)

types: $(INSTALLED) ## check the types
	$(BIN)/pyright

stubs: $(INSTALLED) ## write src/elman/_engine.pyi anew
	$(BIN)/python -m nanobind.stubgen -m elman._engine -o src/elman/_engine.pyi

clean: ## remove all that was built, .venv included
	rm -rf build dist $(VENV) .hypothesis .pytest_cache .ruff_cache

# Python files are used where they lie; a change to the native ones installs again, and compiles
# only what changed, because the build shares this environment. torch comes first and exact: an
# extra's range would fetch another build of it.
$(INSTALLED): pyproject.toml CMakeLists.txt $(NATIVE)
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) scikit-build-core nanobind cmake ninja
	$(PIP) --no-build-isolation --editable '.[dev]'
	touch $@
