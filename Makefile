# The two main commands are `make demo` and `make test`. Both create or update the environment in .venv as needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ATLAS ?= demo/smollm2-135m
SITE := build/site
PEERS := .peers
WORKERS ?= 2
HYPOTHESIS ?= patient

.PHONY: demo test browser lint types check docs tutorials bench memory gpu peers frames evidence alignment audit stitching fuzz heads clean
.DELETE_ON_ERROR:

demo: $(VENV)/.user
	@echo "Reading SmolLM2-135M-Instruct (Q4_1): the weights are fetched once (93 MB), the atlas takes some minutes the first time."
	@$(BIN)/python -m zeropass.checkpoints.demo smollm2-135m
	@$(BIN)/zeropass calibrate smollm2-135m
	@$(BIN)/zeropass build smollm2-135m --out $(ATLAS)
	@$(BIN)/zeropass tour $(ATLAS)
	@echo "  In the browser: $(BIN)/zeropass serve $(ATLAS)"
	@echo "  (the command is in $(BIN); '. $(BIN)/activate' puts it on the path)"

# Each test file runs in one worker, in the order of tests/conftest.py. Small products gain nothing from a second thread.
test: check browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
	--hypothesis-profile=$(HYPOTHESIS)

# The explorer is tested in the system's Chromium. If there is none, root installs Debian's.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; } || \
	echo "NO BROWSER TESTS: there is no Chromium, and it cannot be installed here."

check: lint types

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell src tests docs benchmarks reproduce *.md CITATION.cff Makefile pyproject.toml

# pyright counts what a user's type checker would not know; it finds the packages of the Python that is first on the path.
types: $(VENV)/.dev
	$(BIN)/mypy
	@types=$$(PATH="$(abspath $(BIN)):$$PATH" pyright --verifytypes zeropass --ignoreexternal) || { echo "$$types"; exit 1; }

# The site needs all of the development environment, since the reference imports every module. It needs no network.
docs: $(VENV)/.dev
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --fresh-env docs $(SITE)
	@echo "$(SITE)/index.html"

# This runs the notebooks and keeps their output, which the site shows.
tutorials: $(VENV)/.dev
	$(BIN)/python -m zeropass.checkpoints.demo smollm2-135m
	OMP_NUM_THREADS=1 $(BIN)/python reproduce/tutorials.py

# This prints tables, and ratios next to the recorded ones; RECORD=--record records today's ratios.
bench: $(VENV)/.dev
	$(BIN)/python -m zeropass.checkpoints.demo smollm2-135m
	$(BIN)/python benchmarks/pairs.py --all $(RECORD)
	$(BIN)/python benchmarks/atlas.py $(RECORD)
	$(BIN)/python benchmarks/top_k.py $(RECORD)
	$(BIN)/python benchmarks/llvm_loops.py $(RECORD)
	$(BIN)/python benchmarks/memory.py --only curve,lens
	$(BIN)/python benchmarks/diff.py $(RECORD)
	$(BIN)/zeropass build smollm2-135m --out $(ATLAS)
	$(BIN)/python benchmarks/reading.py --atlas $(ATLAS) $(RECORD)
	$(BIN)/python benchmarks/web.py --atlas $(ATLAS) $(RECORD)

# Two layers are built of each model that is larger than its memory limit: an hour on two cores.
memory: $(VENV)/.dev
	$(BIN)/python benchmarks/memory.py --only llama-7b,gemma-2b

# Lists, pairs and a build in the shape of Llama-3.1-8B, on a GPU that torch can use. It writes 15 GB and deletes them.
gpu: $(VENV)/.dev
	$(BIN)/python benchmarks/gpu.py --layers 7 --build 3 $(RECORD)

# Other people's tools run in an environment of their own.
peers: $(VENV)/.dev $(PEERS)/.installed
	$(BIN)/python benchmarks/side_by_side.py --folder $(PEERS) $(RECORD)
	$(BIN)/python benchmarks/model_coverage.py --folder $(PEERS)

$(PEERS)/.installed: benchmarks/peers/requirements.txt constraints.txt
	$(PYTHON) -m venv $(PEERS)/venv
	$(PEERS)/venv/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers/requirements.txt
	@touch $@

evidence: $(VENV)/.dev
	$(BIN)/zeropass calibrate smollm2-135m
	$(BIN)/zeropass calibrate minilm-l6
	$(BIN)/zeropass evidence smollm2-135m --out evidence/smollm2-135m
	$(BIN)/zeropass evidence minilm-l6 --out evidence/minilm-l6
	$(BIN)/python reproduce/evidence.py evidence/smollm2-135m evidence/minilm-l6

alignment: $(VENV)/.dev
	$(BIN)/python reproduce/alignment.py
	$(BIN)/python -m zeropass.checkpoints.demo smollm2-135m
	$(BIN)/python reproduce/planted.py
	$(BIN)/python reproduce/planted.py --whole
	$(BIN)/python reproduce/real_pairs.py

audit: $(VENV)/.dev
	$(BIN)/python -m zeropass.checkpoints.demo smollm2-135m minilm-l6
	for base in models/first models/wide smollm2-135m; do $(BIN)/python reproduce/fleet.py audit/fleet --base $$base || exit 1; done
	$(BIN)/python reproduce/fleet_measures.py audit/fleet --base models/first --base models/wide --base smollm2-135m
	$(BIN)/python reproduce/screen_measures.py audit/fleet --base models/first --base models/wide --out audit/screen
	$(BIN)/python reproduce/classifiers.py audit/classifiers --all
	$(BIN)/python reproduce/sentiment.py audit/classifiers

stitching: $(VENV)/.dev
	$(BIN)/python -m zeropass.checkpoints.demo minilm-l6
	OMP_NUM_THREADS=1 $(BIN)/python reproduce/tops.py stitching/tops
	OMP_NUM_THREADS=1 $(BIN)/python reproduce/stitching.py stitching
	$(BIN)/python reproduce/stitching_tables.py stitching
	OMP_NUM_THREADS=1 $(BIN)/python reproduce/seams.py stitching

heads: $(VENV)/.dev
	$(BIN)/zeropass calibrate smollm2-135m
	$(BIN)/python reproduce/heads.py smollm2-135m

# Every reader gets 20,000 mutated inputs; FUZZ="--cases 1000 gguf config" tries fewer. A failure prints how to repeat it.
fuzz: $(VENV)/.dev
	$(BIN)/python tests/fuzz.py --json fuzz.json $(FUZZ)

frames: $(VENV)/.dev
	$(BIN)/python reproduce/frames.py

# The constraints file pins PyTorch to a CPU build and says why.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.user: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[web,fast]"
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[run,web,dev]"
	@touch $@ $(VENV)/.user

clean:
	rm -rf $(VENV) $(PEERS) demo build .pytest_cache .mypy_cache .ruff_cache
