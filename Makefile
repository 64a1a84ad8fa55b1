# make demo | test | test-long | clusters | lint | cubins | sanitize | fuzz | bench | wheel | gpu-suite | container |
# openssl-versions | clean
# PYTHON=… is the interpreter (3.11 or later); CC=…, CXX=… and CFLAGS=… reach the compiler. FUZZ_SECONDS=… is how long each
# fuzzer runs, LONG_CASES=… how many cases make test-long takes. PYTHON_VERSION=… and ARCH=… are the Python and the GPU that
# make gpu-suite packs for; with NVRTC=…, it and make cubins compile with that version from PyPI.

PYTHON ?= python3
PYTEST_ARGS ?=
CLANG ?= clang
CLANGXX ?= clang++
FUZZ_SECONDS ?= 30
LONG_CASES ?= 1000000
PYTHON_VERSION ?= 3.12
ARCH ?= sm_90
NVRTC ?=
BIN := .venv/bin
# One more than there are cores, since tests also wait; more than four would get in each other's way.
TEST_PROCESSES = $(shell cores=$$(nproc); echo $$((cores < 4 ? cores + 1 : 4)))
comma := ,
export PIP_DISABLE_PIP_VERSION_CHECK := 1
include flags.mk

# What an editable install doesn't pick up by itself.
BUILT_FROM := pyproject.toml setup.py flags.mk $(shell find gpu_provider tls kernels -name '*.[ch]' -o -name '*.cpp' -o -name '*_build.py')

.PHONY: demo test test-long clusters lint cubins sanitize fuzz bench wheel gpu-suite container openssl-versions clean
.DELETE_ON_ERROR:

demo: .venv/ready-demo
	@$(BIN)/gpu-provider demo --output table

# Hundreds of processes import the same modules. Without bytecode on disk each would compile them again.
test: .venv/ready-test
	@echo "running the tests"
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# Random batches on every ISA of the kernels; the number of cases is that of the fastest ISA.
test-long: .venv/ready-test
	@$(BIN)/python tests/support/kernel_cases.py --cases $(LONG_CASES)

# Ray is large, and slow to start. The package is installed, so pip fetches what the extra names alone.
clusters: .venv/ready-test
	@$(BIN)/python -m pip install --quiet 'gpu-provider[ray]'
	@$(BIN)/pytest -n 0 tests/clusters tests/project/test_documents.py -k 'clusters or snippet' $(PYTEST_ARGS)

bench: .venv/ready-bench
	@$(BIN)/python -m bench

# One set-up for each purpose, so that the demo doesn't fetch what only the tests need.
.venv/ready-demo: EXTRAS = uvloop
# cuda-check is CuPy and NVRTC, 130 MB: NVRTC needs no GPU, so the kernels are tested as a GPU would run them.
.venv/ready-test: EXTRAS = uvloop,test,bench,cuda-check,dask
.venv/ready-lint: EXTRAS = lint,bench
.venv/ready-bench: EXTRAS = uvloop,bench,dask,ray
.venv/ready-cubins: EXTRAS = cuda-check
.venv/ready-ci: EXTRAS = uvloop,test,bench,cuda-check,dask,lint
.venv/ready-test .venv/ready-bench .venv/ready-ci: HOST_KERNELS = bench/gpu/host_kernels.so
.venv/ready-%: $(BUILT_FROM)
	@sh tests/check_prerequisites.sh $(PYTHON)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || \
		{ echo "making .venv"; $(PYTHON) -m venv --clear .venv; }
	@echo "compiling and installing into .venv ($(EXTRAS))"
	@$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	@[ -z "$(HOST_KERNELS)" ] || $(MAKE) --silent --jobs=$$(nproc) $(HOST_KERNELS)
	@touch $@

# The CUDA kernels for the processor, which tests and bench.gpu run where there is no GPU.
MACHINE := $(shell uname -m)
%/threads32.o %/threads52.o: WARP_FLAGS := $(WARP) $(WARP_$(MACHINE))
build/host/%.o: kernels/%.cpp $(wildcard kernels/*.h kernels/*/*.h)
	@mkdir -p $(@D)
	@$(CXX) $(CXX_STANDARD) $(WARNINGS) $(OPTIMIZED) $(WARP_FLAGS) $(CFLAGS) -fPIC -Ikernels -c $< -o $@
bench/gpu/host_kernels.so: $(addprefix build/host/,host/threads.o host/threads32.o host/threads52.o cpu/memory.o)
	@$(CXX) -shared $^ -o $@

# mypy and import-linter look at directories, not at pyproject.toml's mapping: give them the package as it is installed.
lint: .venv/ready-lint
	@rm -rf build/lint && mkdir -p build/lint && cp -pR gpu_provider bench build/lint/ && cp -pR tls kernels build/lint/gpu_provider/
	@$(BIN)/python tests/project/extension_stubs.py build/lint/gpu_provider
	@echo "ruff check"
	@$(BIN)/ruff check --quiet .
	@echo "ruff format --check"
	@$(BIN)/ruff format --check --quiet .
	@echo "clang-format"
	@git ls-files '*.c' '*.h' '*.cpp' '*.cu' | xargs $(BIN)/clang-format --dry-run --Werror
	@! git ls-files '*.c' '*.h' '*.cpp' '*.cu' | LC_ALL=C.UTF-8 xargs grep -nE '^.{121}' # comments, which are wrapped by hand
	@echo "mypy --strict"
	@cd build/lint && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../mypy --no-error-summary -p gpu_provider -p bench
	@mkdir build/lint/typed && cp tests/project/typed_calls.py build/lint/typed && $(BIN)/python tests/project/readme_snippets.py build/lint/typed
	@cd build/lint && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../mypy --no-error-summary typed/*.py
	@echo "pyright"
	@$(BIN)/pyright --pythonpath $(BIN)/python >build/pyright.log || { cat build/pyright.log; exit 1; }
	@echo "import directions"
	@cd build/lint && ../../$(BIN)/lint-imports --config ../../pyproject.toml --no-cache --no-logo
	@echo "include directions"
	@$(BIN)/python tests/project/include_check.py

# CuPy prefers an NVRTC that is already loaded to the one that is installed.
ifneq ($(NVRTC),)
NVRTC_LIBRARIES := build/nvrtc-$(NVRTC)/nvidia/cu13/lib
WITH_NVRTC := LD_LIBRARY_PATH=$(CURDIR)/$(NVRTC_LIBRARIES) LD_PRELOAD=libnvrtc.so.13
endif
build/nvrtc-%/nvidia/cu13/lib: | .venv/ready-cubins
	@$(BIN)/python -m pip install --quiet --no-deps --target build/nvrtc-$* nvidia-cuda-nvrtc==$*

# Compiles the CUDA kernels, without a GPU, and compares their machine code with the repository's table.
cubins: .venv/ready-cubins $(NVRTC_LIBRARIES)
	@$(WITH_NVRTC) $(BIN)/python -m bench.kernels.check_cubins

# The stress tests of the C core, under the address and undefined-behaviour sanitizers. The thread sanitizer can't follow a
# switch of stacks, so it only gets those without OpenSSL's async jobs.
STRESS := $(patsubst tests/native/%.c,%,$(wildcard tests/native/*_stress.c))
SANITIZE_SOURCES := $(filter-out %/module.c,$(wildcard gpu_provider/native/*.c gpu_provider/native/*/*.c))
SANITIZE_FLAGS := $(C_STANDARD) $(WARNINGS) -O1 -g -fno-omit-frame-pointer -Werror -pthread -Igpu_provider/native -Ikernels -Itests/native
define sanitized_program
build/sanitize/$(1)-$(2): tests/native/$(1).c $(wildcard gpu_provider/native/*.[ch] gpu_provider/native/*/*.[ch] tests/native/*.h)
	@mkdir -p $$(@D)
	@$$(CC) $$(SANITIZE_FLAGS) -fsanitize=$(3) $$< $$(SANITIZE_SOURCES) -o $$@ -lcrypto
sanitize: build/sanitize/$(1)-$(2)
endef
$(foreach stress,$(STRESS),$(eval $(call sanitized_program,$(stress),address,address$(comma)undefined -fno-sanitize-recover=all)))
$(foreach stress,$(filter-out jobs_%,$(STRESS)),$(eval $(call sanitized_program,$(stress),thread,thread)))

# The kernels, with clang, which has libFuzzer and compiles faster. In the unrolled arithmetic, checking every pointer would
# take minutes to compile; the address sanitizer still checks what is accessed.
KERNELS_FLAGS := $(CXX_STANDARD) $(WARNINGS) -O1 -g1 -fno-omit-frame-pointer -Werror -pthread -Ikernels -Itests/native
KERNELS_OBJECTS := $(patsubst kernels/%.cpp,%.o,$(wildcard kernels/cpu/*.cpp))
SANITIZER_address := -fsanitize=address,undefined,fuzzer-no-link -fno-sanitize-recover=all
SANITIZER_thread := -fsanitize=thread
UNROLLED := -fno-sanitize=null,alignment,pointer-overflow,object-size
build/sanitize/address/cpu/batch_%.o: KERNELS_FLAGS += $(UNROLLED)
THREADS_OBJECTS := $(addprefix build/sanitize/address/,host/threads32.o host/threads52.o records.o cpu/memory.o)
build/sanitize/address/host/threads%.o: KERNELS_FLAGS += $(UNROLLED)
%/batch_ifma.o: KERNELS_FLAGS += $(IFMA_$(MACHINE))
define sanitized_kernels
build/sanitize/$(1)/%.o: kernels/%.cpp $(wildcard kernels/*.h kernels/*/*.h)
	@mkdir -p $$(@D)
	@$$(CLANGXX) $$(SANITIZER_$(1)) $$(KERNELS_FLAGS) $$(WARP_FLAGS) -c $$< -o $$@
build/sanitize/kernels_stress-$(1): tests/native/kernels_stress.cpp $(addprefix build/sanitize/$(1)/,$(KERNELS_OBJECTS))
	@$$(CLANGXX) $$(SANITIZER_$(1)) $$(KERNELS_FLAGS) $$^ -o $$@ -lcrypto
sanitize: build/sanitize/kernels_stress-$(1)
endef
$(foreach sanitizer,address thread,$(eval $(call sanitized_kernels,$(sanitizer))))
build/sanitize/kernels_fuzz: $(addprefix build/sanitize/address/,$(KERNELS_OBJECTS))
build/sanitize/threads_fuzz: $(THREADS_OBJECTS)
build/sanitize/%_fuzz: tests/native/%_fuzz.cpp tests/native/fuzz_input.h
	@$(CLANGXX) -fsanitize=fuzzer $(SANITIZER_address) $(KERNELS_FLAGS) $(filter-out %.h,$^) -o $@ -lcrypto

build/sanitize/messages_fuzz: tests/native/messages_fuzz.c $(SANITIZE_SOURCES)
	@mkdir -p $(@D)
	@$(CLANG) -fsanitize=fuzzer $(SANITIZER_address) $(SANITIZE_FLAGS) $^ -o $@ -lcrypto

# Seeded with noise, since any bytes are valid input. Inputs that reach new code are kept in build/fuzz/…/corpus; one that
# fails is saved beside it as crash-…: pass it to build/sanitize/…_fuzz as its argument.
FUZZERS := fuzz-kernels fuzz-threads fuzz-messages
fuzz-messages: LONGEST = 4200
.PHONY: $(FUZZERS)
fuzz: $(FUZZERS)
$(FUZZERS): fuzz-%: build/sanitize/%_fuzz
	@mkdir -p build/fuzz/$*/corpus
	@for seed in $$(seq 32); do \
		[ -f build/fuzz/$*/corpus/seed-$$seed ] || head -c 256 /dev/urandom >build/fuzz/$*/corpus/seed-$$seed; \
	done
	@echo "$<, for $(FUZZ_SECONDS) s"
	@$< -max_total_time=$(FUZZ_SECONDS) -timeout=60 -len_control=0 -max_len=$(or $(LONGEST),512) -artifact_prefix=build/fuzz/$*/ -verbosity=0 \
		-print_final_stats=1 build/fuzz/$*/corpus

sanitize:
	@for program in $^; do \
		echo "$$program"; \
		case $$program in */jobs_* | */service_*) export LSAN_OPTIONS=suppressions=tests/native/jobs_stress.supp:print_suppressions=0; esac; \
		timeout 300 $$program || exit; unset LSAN_OPTIONS; \
	done

wheel: .venv/ready-test
	@rm -rf build/lib* build/bdist* dist
	@echo "building the sdist, and the wheel from it"
	@$(BIN)/python -m build . >build/wheel.log 2>&1 || { cat build/wheel.log; exit 1; }
	@ls dist/*

# bench.gpu and everything it needs, for a machine with a GPU and no network.
gpu-suite: wheel .venv/ready-cubins $(NVRTC_LIBRARIES)
	@echo "fetching wheels, compiling kernels"
	@$(WITH_NVRTC) $(BIN)/python -m bench.gpu.archive build/gpu-suite.tar --wheel dist/*.whl --python $(PYTHON_VERSION) --arch $(ARCH)

container: .venv/ready-test
	@$(BIN)/python tests/containers/terminator.py || [ $$? = 77 ]

openssl-versions:
	@$(PYTHON) tests/containers/openssl_versions.py || [ $$? = 77 ]

clean:
	rm -rf .venv build dist *.egg-info gpu_provider/native/*.so kernels/*.so tls/*.so bench/gpu/*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis
