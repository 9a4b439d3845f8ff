# make demo       draw a set of scenes, train on it, draw held-out prompts (a few minutes on two cores)
# make test       the test suite
# make check      formatting, lint, types and the test suite
# make test-sdk   the test suite on what Graphcore's SDK brings: make test-sdk PYTHON=python3.8
# make test-peers our models beside the programs they replace, with copied weights
# make bench      ours measured beside DALLE-pytorch: make bench [BENCH='training drawing']
# make bench-gpu  the same on a GPU
# make smoke-ipu  what to run first on a machine with IPUs: make smoke-ipu [ENGINE=ipu-sim] [PYTHON=...]
# make custom_ops the fused operators for IPUs, with the SDK that is enabled
# make host-ops   the same for the simulator, with a C++ compiler alone
# make check-headers  their types against checkouts of the open headers: POPLIBS=... POPART=... POPRITHMS=...
# Each makes the environment it needs if there is none; smoke-ipu takes the one with PopTorch in it.
PYTHON ?= python3
VENV ?= .venv
SDK_VENV ?= .venv-sdk
PEERS_VENV ?= .venv-peers
BIN := $(VENV)/bin
JOBS ?= 2
DEMO := output/demo
ENGINE ?= ipu
# Threads that wait asleep: spinning ones bring a busy machine to a halt.
export OMP_WAIT_POLICY ?= passive

CXX_FILES = $(shell find custom_ops native tests/custom_ops -name '*.[ch]pp')

.PHONY: demo test check lint format test-sdk test-peers bench bench-gpu smoke-ipu custom_ops host-ops check-headers clean
.PHONY: host-ops-for-tests

demo: $(VENV)/core
	$(BIN)/python -m data.demo --out-dir $(DEMO)/scenes
	$(BIN)/python -m bpe.train --captions $(DEMO)/scenes/captions_train2017.txt --out $(DEMO)/vocabulary.json --vocab-size 512
	$(BIN)/python train_vae.py --config demo_vae --resume
	$(BIN)/python train.py --config demo --resume
	$(BIN)/python evaluate.py --dalle_path $(DEMO)/dalle --prompts $(DEMO)/scenes/held_out_prompts.txt \
		--outputs_dir $(DEMO) --temperature 0.1

test: $(VENV)/dev
	$(BIN)/python -m pytest -q -n $(JOBS)

check: lint test

lint: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/dev
	$(BIN)/clang-format -i $(CXX_FILES)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test-sdk: $(SDK_VENV)/sdk
	$(SDK_VENV)/bin/python -m pytest -q -n $(JOBS)

test-peers: $(PEERS_VENV)/peers
	$(PEERS_VENV)/bin/python -m pytest -q tests/peers/compare_*.py

# Here threads wait as they do for users, who set nothing.
bench: $(PEERS_VENV)/peers
	env -u OMP_WAIT_POLICY $(PEERS_VENV)/bin/python -m bench $(BENCH)

bench-gpu: $(PEERS_VENV)/peers
	env -u OMP_WAIT_POLICY $(PEERS_VENV)/bin/python -m bench --device cuda $(BENCH)

smoke-ipu:
	@$(PYTHON) -c 'import pytest, torch' || { echo 'make smoke-ipu: install PopTorch, requirements.txt and pytest for $(PYTHON); see docs/ipu.md'; exit 2; }
	ENGINE=$(ENGINE) $(PYTHON) -m pytest -v --no-header tests/ipu_smoke.py

custom_ops:
	@$(MAKE) --no-print-directory -C custom_ops sdk

host-ops:
	@$(MAKE) --no-print-directory -C custom_ops -j $(JOBS) host

host-ops-for-tests:
	@$(MAKE) --no-print-directory -C custom_ops -j $(JOBS) host-tests

check-headers:
	@$(MAKE) --no-print-directory -C custom_ops check-headers

$(VENV)/core: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/dev: requirements-dev.txt $(VENV)/core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(SDK_VENV)/sdk: requirements.txt
	$(PYTHON) -m venv $(SDK_VENV)
	$(SDK_VENV)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.0.1 torchvision==0.15.2 \
		-r requirements.txt pytest pytest-xdist 'webdataset>=0.2.48'
	touch $@

$(PEERS_VENV)/peers: requirements.txt requirements-peers.txt
	$(PYTHON) -m venv $(PEERS_VENV)
	$(PEERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt pytest \
		'cython<3' 'setuptools<81' wheel ftfy regex 'transformers<5'
	$(PEERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		-r requirements-peers.txt
	touch $@

clean:
	rm -rf $(VENV) $(SDK_VENV) $(PEERS_VENV) custom_ops/build $(DEMO) .pytest_cache .mypy_cache .ruff_cache
