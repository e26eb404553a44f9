VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
NATIVE := $(wildcard src/elman/kernels/*/*.h src/elman/kernels/*/*.cpp)
PIP := -m pip install --quiet --disable-pip-version-check

# OneFlow 0.9.0 runs on Python 3.10 and NumPy 1, and links to CUDA's libraries even on a CPU.
ONEFLOW := .venv-oneflow
ONEFLOW_PACKAGES := oneflow==0.9.0 'numpy<2' nvidia-cudnn-cu11==8.5.0.96 nvidia-cublas-cu11==11.10.3.66
NVIDIA := $(CURDIR)/$(ONEFLOW)/lib/python3.10/site-packages/nvidia
PYTHON310 ?= $(shell for p in python3.10 $$HOME/.pyenv/versions/3.10.*/bin/python; do \
	"$$p" -c '' 2> /dev/null && echo "$$p" && break; done)

R_PACKAGES := r-base-core r-cran-reticulate r-cran-testthat
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)

# The oldest torch that Elman supports, in an environment of its own. It warns about itself, and
# crashes when it checks how double backward is traced.
OLDEST := .venv-torch-oldest

.PHONY: help setup test test-oneflow test-r test-ecosystem test-torch-oldest demo bench lint format types stubs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-19s%s\n", $$1, $$2 }' Makefile

setup: $(INSTALLED) ## create .venv and install Elman into it, in place

test: $(INSTALLED) ## run every test and every documented example
	$(BIN)/python -m pytest

test-oneflow: $(ONEFLOW)/installed ## run the OneFlow door's tests on OneFlow itself; needs Python 3.10
	LD_LIBRARY_PATH=$(NVIDIA)/cudnn/lib:$(NVIDIA)/cublas/lib \
		$(ONEFLOW)/bin/python -m pytest tests/test_oneflow.py src/elman/oneflow.py

test-r: $(INSTALLED) ## run the R package's tests; installs R and reticulate on Debian
	dpkg -s $(R_PACKAGES) > /dev/null 2>&1 || \
		($(SUDO) apt-get update && $(SUDO) apt-get install --yes --no-install-recommends $(R_PACKAGES))
	mkdir -p build/r
	R CMD INSTALL --library=build/r r
	R_LIBS=$(CURDIR)/build/r RETICULATE_PYTHON=$(CURDIR)/$(BIN)/python Rscript -e \
		'testthat::test_dir("r/tests/testthat", reporter = "summary", package = "elman", load_package = "installed")'

test-ecosystem: $(INSTALLED) ## run the tests with PyTorch Lightning, skorch and TorchRL; installs them
	$(BIN)/python $(PIP) lightning skorch torchrl
	$(BIN)/python -m pytest tests/test_torch_ecosystem.py

test-torch-oldest: $(OLDEST)/installed ## run the PyTorch door's tests on torch 2.6; some 3 GB on Linux
	$(OLDEST)/bin/python -m pytest -W default $(wildcard tests/test_torch_*.py) src/elman/torch.py \
		--deselect tests/test_torch_compile.py::test_backward_operator

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
	rm -rf build dist $(VENV) $(ONEFLOW) $(OLDEST) .hypothesis .pytest_cache .ruff_cache

# Python files are used where they lie; a change to the native ones installs again, and compiles
# only what changed, because the build shares this environment. torch comes first and exact: an
# extra's range would fetch another build of it.
$(INSTALLED): pyproject.toml CMakeLists.txt $(NATIVE)
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(BIN)/python $(PIP) torch==2.13.0
	$(BIN)/python $(PIP) scikit-build-core nanobind cmake ninja
	$(BIN)/python $(PIP) --no-build-isolation --editable '.[dev]'
	touch $@

$(OLDEST)/installed: pyproject.toml CMakeLists.txt $(NATIVE)
	test -x $(OLDEST)/bin/python || python3 -m venv $(OLDEST)
	$(OLDEST)/bin/python $(PIP) torch==2.6.0 scikit-build-core nanobind cmake ninja
	$(OLDEST)/bin/python $(PIP) --no-build-isolation --config-settings=build-dir=build/oldest \
		--editable '.[demo,test]'
	touch $@

$(ONEFLOW)/installed: pyproject.toml CMakeLists.txt $(NATIVE)
	test -x $(ONEFLOW)/bin/python || $(PYTHON310) -m venv $(ONEFLOW)
	$(ONEFLOW)/bin/python $(PIP) $(ONEFLOW_PACKAGES) pytest scikit-build-core nanobind cmake ninja
	$(ONEFLOW)/bin/python $(PIP) --no-build-isolation --no-deps --editable .
	touch $@
