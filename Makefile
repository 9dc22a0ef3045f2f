# Every target does its own set-up: `make demo` and `make test` work in a fresh clone.
#
#   make demo                      export the small trained codec, send speech through it, prove it against PyTorch
#   make demo MODEL=kyutai/mimi    the same with the real weights from the Hugging Face Hub
#   make test                      the tests (under a quarter of an hour on two cores); make test-fast stays under 90 seconds,
#                                  make test-slow has the full-size checkpoint and long streams
#
# PyTorch comes as the version in constraints.txt. Where the package index would send a CUDA build of it, point PIP
# at an index of CPU builds first: PIP_EXTRA_INDEX_URL=... make demo

PYTHON ?= python3
VENV ?= .venv
COMPAT ?= .venv-compat
OLDEST ?= .venv-oldest
MAAI ?= .venv-maai
PEERS ?= .venv-peers
BIN := $(VENV)/bin
# The demo speaks with the small trained checkpoint; all else takes the made-up one of the real size.
MODEL ?= $(if $(filter demo,$(MAKECMDGOALS)),demo,synthetic)
AUDIO ?= $(if $(filter demo,$(MAKECMDGOALS)),scripts/clips/speech.ogg,generated)
TRANSFORMERS ?= '5.3.*' '5.5.*' '5.*'
COMPAT_TESTS = $(addprefix tests/test_,upstream.py upstreams.py checkpoint.py kyutai.py exactness.py latents.py)
WORKERS ?= -n 2 --dist loadfile --no-loadscope-reorder

PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-fast mutants real-audio test-compat test-oldest test-maai lint format build parity bench bench-peers node-deps page demo-web clean

help:  ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 16

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing packages (a few minutes the first time)"
	$(PIP) install --constraint constraints.txt torch
	$(PIP) install --constraint constraints.txt --editable '.[export,serve,dev]'
	@touch $@

install: $(STAMP)  ## make the virtual environment and install everything

demo: $(STAMP)  ## export streaming-8cb, send speech through it, prove it against PyTorch
	$(BIN)/mimi-export build streaming-8cb --no-check --model $(MODEL) --output-dir artifacts/demo
	$(BIN)/python scripts/demo.py artifacts/demo/streaming-8cb $(AUDIO) artifacts/demo
	$(BIN)/mimi-export parity artifacts/demo/streaming-8cb $(if $(filter-out generated,$(AUDIO)),--audio $(AUDIO)) \
		--calls 1,mixed --report artifacts/demo/parity --force
	@echo "listen to artifacts/demo/decoded.wav, open artifacts/demo/parity/report.html"

test: $(STAMP)  ## all tests but the slow ones
	$(BIN)/python -m pytest $(WORKERS) -m "not slow"

test-slow: $(STAMP)  ## full size, long streams, ten thousand damaged files: half an hour, before a release
	$(BIN)/python -m pytest $(WORKERS) -m slow

test-fast: $(STAMP)  ## what needs no exported graph, under 90 seconds
	$(BIN)/python -m pytest $(WORKERS) -m "not slow and not export"

mutants: $(STAMP)  ## break tiny variants in every known way, and write tests/mutants.md
	$(BIN)/python tests/mutants.py build/mutants

real-audio: $(STAMP)  ## parity over half an hour of real speech and music; as root on Debian, hours at full size
	apt-get install -y ffmpeg fillets-ng-data-nl asterisk-core-sounds-en-g722 asterisk-moh-opsound-g722 pocketsphinx-testdata
	$(BIN)/mimi-export build streaming-8cb streaming-8cb-int8 --no-check --model $(MODEL) --output-dir artifacts/real-audio
	$(BIN)/python scripts/real_audio.py artifacts/real-audio/streaming-8cb artifacts/real-audio/streaming-8cb-int8

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## let ruff fix and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: $(STAMP)  ## build all variants of configs/ from MODEL into artifacts/
	$(BIN)/mimi-export build --model $(MODEL)

parity: $(STAMP)  ## measure all built variants; writes artifacts/parity/report.{html,md,json,xml}
	$(BIN)/mimi-export parity artifacts/streaming-* $(if $(filter-out generated,$(AUDIO)),--audio $(AUDIO)) \
		--report artifacts/parity --force

bench: $(STAMP)  ## measure speed side by side; with make bench-peers also against moshi and rustymimi
	$(PIP) install --constraint constraints.txt --editable '.[bench]'
	$(BIN)/mimi-export build streaming-8cb streaming-8cb-fp16 streaming-8cb-int8 --no-check --model $(MODEL)
	$(BIN)/mimi-export build --configs configs/ring --model $(MODEL)
	$(BIN)/mimi-export bench --frames 15 --batches 1,4,8,16,32 --threads 1,2 --targets --output artifacts/bench --force \
		$(if $(wildcard $(PEERS)/bin/python),--peers-python $(PEERS)/bin/python)

bench-peers:  ## an environment of its own with moshi and rustymimi, for make bench
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet torch==2.13.0 transformers==5.23.0 einops==0.8.2 sentencepiece==0.2.3
	$(PEERS)/bin/python -m pip install --quiet --no-deps moshi==0.2.13 rustymimi==0.4.1

test-compat:  ## the tests of weights and exactness against each transformers of TRANSFORMERS, old ones and the newest
	test -x $(COMPAT)/bin/python || $(PYTHON) -m venv $(COMPAT)
	$(COMPAT)/bin/python -m pip install --quiet torch==2.13.0
	for version in $(TRANSFORMERS); do \
		$(COMPAT)/bin/python -m pip install --quiet --upgrade --editable '.[export,dev]' "transformers==$$version" torch==2.13.0 && \
		$(COMPAT)/bin/python -m pytest -m "not slow" $(COMPAT_TESTS) || exit; done

test-maai: $(STAMP)  ## the class of MaAI's package on our files, today and with the onnxruntime that its products pin
	$(PIP) install --no-deps maai==0.2.25 einops==0.8.2
	$(BIN)/python -m pytest tests/test_maai.py
	test -x $(MAAI)/bin/python || $(PYTHON) -m venv $(MAAI)
	$(MAAI)/bin/python -m pip install --quiet torch==2.13.0
	$(MAAI)/bin/python -m pip install --quiet --editable '.[export,dev]' torch==2.13.0 onnx==1.19.1 onnxruntime==1.23.2
	$(MAAI)/bin/python -m pip install --quiet --no-deps maai==0.2.25 einops==0.8.2
	$(MAAI)/bin/python -m pytest -m "not slow" tests/test_maai.py

# `numpy>=1.26` of pyproject.toml becomes `numpy~=1.26.0`. These packages are for Python up to 3.12.
LOWER_BOUNDS = $(shell sed -nE '/^dependencies = /,/^\]/ s/^ *"([a-z]+)>=([0-9.]+)",/\1~=\2.0/p' pyproject.toml)

test-oldest: $(STAMP)  ## tiny variants in the oldest onnxruntime and other packages that a base install allows
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --editable . $(LOWER_BOUNDS)
	rm -rf build/oldest
	$(BIN)/mimi-export export --model synthetic:tiny --output-dir build/oldest/window
	$(BIN)/mimi-export export --model synthetic:tiny --kv-cache ring --output-dir build/oldest/ring
	for layout in window ring; do for precision in fp16 int8; do \
		$(BIN)/mimi-export convert $$precision build/oldest/$$layout build/oldest/$$layout-$$precision || exit; done; done
	$(OLDEST)/bin/mimi-export encode --help >/dev/null
	for variant in build/oldest/*; do $(OLDEST)/bin/mimi-export verify $$variant || exit; done

node-deps:  ## the npm packages of the Node tests, as locked
	for folder in tests/node js; do (cd $$folder && ONNXRUNTIME_NODE_INSTALL=skip npm ci --no-audit --no-fund) || exit; done

page:  ## build the page of `mimi-export web` from js/page into the package
	cd js && node page/build.js

demo-web: $(STAMP)  ## build a page with the demo in fp32, fp16 and int8, and serve it at http://localhost:8000/
	$(BIN)/mimi-export build streaming-8cb streaming-8cb-fp16 streaming-8cb-int8 --no-check --model demo --output-dir artifacts/demo-web
	$(BIN)/mimi-export web artifacts/demo-web/streaming-8cb artifacts/demo-web/streaming-8cb-fp16 artifacts/demo-web/streaming-8cb-int8 \
		--out artifacts/demo-web/site --force --serve

clean:  ## remove what was built
	rm -rf artifacts/streaming-* build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
