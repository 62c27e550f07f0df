# SPDX-License-Identifier: MPL-2.0

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The values as typed: a path may hold spaces, dollar signs and any other character.
override INPUT := $(value INPUT)
override OUTPUT := $(value OUTPUT)
export INPUT OUTPUT
# Where Python keeps no bytecode, each of its processes compiles PyTorch anew, for a minute.
unexport PYTHONDONTWRITEBYTECODE

CACHE := .cache
VENV := .venv
PYTHON := $(VENV)/bin/python
RUNTIME := $(CACHE)/onnxruntime
# With NVIDIA's GPUs; where it is there, the plugin takes it.
GPU := $(CACHE)/onnxruntime-gpu
OPENVINO := $(CACHE)/openvino
RIVALS := $(CACHE)/rivals
RELEASE := $(or $(CARGO_TARGET_DIR),target)/release
# The default comes first.
BUNDLES := models/nano2 models/nano
STARSR := $(RELEASE)/starsr
SAMPLE := $(CACHE)/sample.mp4
FUZZ := $(CACHE)/cargo-fuzz/bin/cargo-fuzz
# uv unpacks the 6 GB of Python packages several times faster than pip.
UV := 0.13.9

PREFIX ?= /usr/local
PLUGIN_DIR = $(DESTDIR)$(shell pkg-config --variable=pluginsdir gstreamer-1.0)
SHARE = $(DESTDIR)$(PREFIX)/share
MAN_DIR = $(SHARE)/man/man1
LIBRARY = $(notdir $(wildcard $(RUNTIME)/libonnxruntime.so.*))

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: upscale
upscale: build ## upscale INPUT to OUTPUT (without INPUT: a sample clip), with the program's options in ARGS
	@if [[ -n $$INPUT ]]; then \
	  $(STARSR) upscale $(ARGS) -- "$$INPUT" "$${OUTPUT:-$${INPUT%.*}-upscaled.mp4}"; \
	else \
	  [[ -f $(SAMPLE) ]] || tools/make-sample $(SAMPLE); \
	  $(STARSR) upscale --force $(ARGS) -- $(SAMPLE) "$${OUTPUT:-sample-upscaled.mp4}"; \
	fi

.PHONY: test test-rust test-python small-reference
test: test-rust test-python ## run all tests

test-rust: build small-reference ## run the Rust tests, with cargo's arguments in ARGS
	cargo test --release --locked --workspace $(ARGS)

test-python: $(VENV)/requirements ## run the Python tests, with pytest's arguments in ARGS
	$(PYTHON) -m pytest python/tests $(ARGS)

# PyTorch's threads spin while they wait for each other: beside other work, two take ten times as long as one.
test-python small-reference: export OMP_NUM_THREADS := 1
# What Python frees stays with its process: in a virtual machine, new pages cost a quarter of the time.
test-python small-reference: export MALLOC_MMAP_MAX_ := 0
test-python small-reference: export MALLOC_TRIM_THRESHOLD_ := -1

small-reference: $(VENV)/requirements ## make what the Rust tests compare a whole small STAR with, from STARSR_REFERENCE, and small bundles
	@$(PYTHON) python/tests/small_star.py --output $(CACHE)/small
	@$(PYTHON) python/tests/small_cogvideox.py --output $(CACHE)/small-cogvideox

.PHONY: build
build: $(RUNTIME)/LICENSE ## build the plugin and the program, with ONNX Runtime and the model bundles nano2 and nano beside them
	@cargo build --release --locked --workspace
	@tools/stage $(RUNTIME) $(RELEASE) $(BUNDLES)

.PHONY: gpu openvino
gpu: build $(GPU)/LICENSE ## fetch ONNX Runtime for NVIDIA GPUs (260 MB) and let the plugin in target/release use it
	@mkdir -p $(RELEASE)/gpu
	@rm -f $(RELEASE)/gpu/libonnxruntime.so.*
	@ln -s "$(CURDIR)/$(GPU)"/libonnxruntime.so.* $(RELEASE)/gpu/

openvino: $(OPENVINO)/LICENSE ## fetch the execution provider OpenVINO (50 MB), for the tests

.PHONY: examples
examples: build ## build the examples in Rust and C into target/release/examples
	cargo build --release --locked --examples
	$(CC) -std=gnu11 -O2 -Wall -Wextra -Werror examples/c/live.c -o $(RELEASE)/examples/live $$(pkg-config --cflags --libs gstreamer-1.0)

.PHONY: docs tables
docs: ## check the links of the documentation and build its site into build/docs
	tools/build-docs

tables: build ## write the tables of docs/element.md and docs/files.md from the code
	STARSR_WRITE_DOCS=1 cargo test --release --locked --test element documentation
	STARSR_WRITE_DOCS=1 cargo test --release --locked -p starsr-cli --test upscale formats

.PHONY: bench
bench: build ## run the benchmarks, with cargo's arguments in ARGS
	cargo bench --locked --workspace $(ARGS)

.PHONY: soak films valgrind
soak: build ## run the plugin for a long time and watch its memory, its frames and their times
	tools/soak $(ARGS)
	cargo test --release --locked --test soak -- --ignored --exact --nocapture --test-threads 1 seeks::long times::long

films: build ## compare jobs of all lengths with one run, kill them at twenty moments, and plan and join a film of two hours
	cd crates/starsr-cli && cargo test --release --locked --test job -- --ignored --nocapture --test-threads 1

valgrind: build ## run short pipelines under valgrind
	@command -v valgrind >/dev/null || { echo "valgrind is missing: apt-get install valgrind" >&2; exit 1; }
	cargo --config 'target."cfg(all())".runner = "tools/valgrind"' test --release --locked --test soak -- \
	  --ignored --exact --nocapture leaks::play_case

.PHONY: fuzz
fuzz: build $(FUZZ) ## look for inputs that break the element: TARGETS ("manifest caps events frames"), each for SECONDS (600)
	tools/fuzz $(FUZZ) $(RUNTIME) $(CACHE)/fuzz $(or $(SECONDS),600) $(or $(TARGETS),manifest caps events frames)

.PHONY: lint lint-rust lint-python lint-docs
lint: lint-rust lint-python lint-docs ## check format, lints, types, licences and the documentation

lint-rust: system
	cargo fmt --all --check
	cargo clippy --release --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --workspace --no-deps
	@if command -v cargo-deny >/dev/null; then cargo deny --offline check licenses bans sources; \
	  else echo "cargo-deny is missing: the licences of the dependencies are not checked"; fi

lint-python: $(VENV)/requirements
	$(VENV)/bin/ruff format --check python
	$(VENV)/bin/ruff check python
	$(VENV)/bin/mypy --config-file python/pyproject.toml python/src python/tests

lint-docs: build
	tools/check-docs
	tools/check-readme

.PHONY: nano
nano: $(VENV)/requirements ## train on the media in MEDIA, with starsr-train's options in ARGS, and export the bundle to models/nano
	@[[ -n "$(MEDIA)" ]] || { echo "make nano MEDIA=folder-with-photographs-and-video [ARGS=...]" >&2; exit 2; }
	$(VENV)/bin/starsr-train nano --data "$(MEDIA)" --checkpoint $(CACHE)/nano.pt $(ARGS)
	$(VENV)/bin/starsr-export-nano --checkpoint $(CACHE)/nano.pt --output models/nano

.PHONY: ablations
ablations: $(VENV)/requirements ## train the paper's ablations on the media in MEDIA, for hours, and write docs/ablations.md, with options in ARGS
	@[[ -n "$(MEDIA)" ]] || { echo "make ablations MEDIA=folder-with-photographs-and-video [ARGS=...]" >&2; exit 2; }
	$(VENV)/bin/starsr-ablations --media "$(MEDIA)" --folder $(CACHE)/ablations --results docs/ablations.json \
	  --output docs/ablations.md $(ARGS)

.PHONY: rivals
rivals: $(RIVALS)/LICENSE ## fetch other projects' networks (100 MB), for starsr-eval's option --rival

.PHONY: eval
eval: build $(VENV)/requirements ## compare upscalers on clips and write a report, with starsr-eval's options in ARGS
	$(VENV)/bin/starsr-eval $(ARGS)

.PHONY: export rehearse
export: $(VENV)/requirements ## convert STAR's released weights into a model bundle, with starsr-export's options in ARGS
	$(VENV)/bin/starsr-export $(ARGS)

rehearse: $(VENV)/requirements ## convert and run random weights of STAR's true size (12 GB of disk), with options in ARGS
	$(VENV)/bin/starsr-rehearse $(ARGS)

.PHONY: install uninstall
install: build ## install plugin, program, man pages and completions (below DESTDIR and PREFIX)
	install -d "$(PLUGIN_DIR)/starsr"
	install -m 755 $(RELEASE)/libgststarsr.so "$(PLUGIN_DIR)/"
	install -m 644 $(RUNTIME)/$(LIBRARY) "$(PLUGIN_DIR)/starsr/"
	install -m 644 $(RUNTIME)/LICENSE "$(PLUGIN_DIR)/starsr/LICENSE.onnxruntime"
	install -m 644 $(RUNTIME)/ThirdPartyNotices.txt "$(PLUGIN_DIR)/starsr/ThirdPartyNotices.onnxruntime.txt"
	for bundle in $(notdir $(BUNDLES)); do \
	  install -d "$(PLUGIN_DIR)/starsr/$$bundle" && install -m 644 models/$$bundle/* "$(PLUGIN_DIR)/starsr/$$bundle/" || exit; done
	install -D -m 755 $(STARSR) "$(DESTDIR)$(PREFIX)/bin/starsr"
	$(STARSR) documentation build/program
	install -d "$(MAN_DIR)"
	install -m 644 build/program/man/*.1 "$(MAN_DIR)/"
	install -D -m 644 build/program/completions/starsr.bash "$(SHARE)/bash-completion/completions/starsr"
	install -D -m 644 build/program/completions/_starsr "$(SHARE)/zsh/site-functions/_starsr"
	install -D -m 644 build/program/completions/starsr.fish "$(SHARE)/fish/vendor_completions.d/starsr.fish"

uninstall: ## remove what install has put there
	rm -rf "$(PLUGIN_DIR)/libgststarsr.so" "$(PLUGIN_DIR)/starsr" "$(DESTDIR)$(PREFIX)/bin/starsr" "$(MAN_DIR)"/starsr.1 "$(MAN_DIR)"/starsr-*.1 \
	  "$(SHARE)/bash-completion/completions/starsr" "$(SHARE)/zsh/site-functions/_starsr" "$(SHARE)/fish/vendor_completions.d/starsr.fish"

.PHONY: clean distclean
clean: ## remove what was built
	cargo clean
	rm -rf build $(SAMPLE)

distclean: clean ## remove what was built and what was downloaded
	rm -rf $(CACHE) $(VENV)

.PHONY: system
system:
	@tools/install-system

$(FUZZ):
	cargo install cargo-fuzz --version 0.13.2 --locked --root $(CACHE)/cargo-fuzz

$(RUNTIME)/LICENSE: tools/onnxruntime.txt tools/fetch-onnxruntime | system
	@tools/fetch-onnxruntime $(RUNTIME)

$(GPU)/LICENSE: tools/onnxruntime-gpu.txt tools/fetch-onnxruntime | system
	@tools/fetch-onnxruntime $(GPU) onnxruntime-gpu.txt

$(OPENVINO)/LICENSE: tools/openvino.txt tools/fetch-onnxruntime | system
	@tools/fetch-onnxruntime $(OPENVINO) openvino.txt

$(RIVALS)/LICENSE: tools/rivals.txt tools/fetch-rivals | system
	@tools/fetch-rivals $(RIVALS)

$(VENV)/requirements: python/requirements.lock python/pyproject.toml | system
	@echo "installing the Python packages of python/requirements.lock: 6 GB, mostly PyTorch for NVIDIA GPUs, as the registry has no other wheel"
	@python3 -m venv $(VENV)
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check uv==$(UV)
	@$(PYTHON) -m uv pip install --quiet --python $(PYTHON) --requirement python/requirements.lock
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable python
	@touch $@
