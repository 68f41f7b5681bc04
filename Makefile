# Everything starts from here, on a bare machine with Python 3.11+, pip and venv. `make` lists the targets.
#
#   make serve ARGS="--instances 4 --port 9000"
#   make env TORCH_INDEX=https://…            another source of PyTorch's CPU build
#   make env PYTHON=python3.12                another Python; the environment keeps it from then on

PYTHON ?= python3
BIN := .venv/bin
export TORCH_INDEX

.PHONY: help env triton nixl prometheus serve test test-versions nightly check hello soak clean
.DEFAULT_GOAL := help

help:           ## this list
	@sed -n 's/^\([a-z-]*\): .*## */  make \1\t/p; s/^\([a-z-]*\):  *## */  make \1\t/p' $(MAKEFILE_LIST)

env:            ## the environment .venv, made or repaired
	@$(PYTHON) requirements/make_env.py

triton: env     ## what runs kernels of GPUs in tests, in a folder of its own: 290 MB to load
	@$(PYTHON) requirements/make_triton.py

nixl: env       ## what moves blocks by NIXL in tests, in a folder of its own: 59 MB to load
	@$(PYTHON) requirements/make_nixl.py || echo "no NIXL for its tests, which are skipped"

prometheus: env ## what tries alerts and the Grafana board in tests, in a folder of its own: 19 MB to load
	@$(PYTHON) requirements/make_prometheus.py

serve: env      ## serve a tiny model, or what ARGS says
	@$(BIN)/llumnix serve $(ARGS)

test: env triton nixl prometheus ## all tests of every day: some 25 minutes on 2 cores; pytest's own words in ARGS
	@timeout -k 60 1800 $(BIN)/python -m pytest $(ARGS)

test-versions: env  ## the other versions of vLLM, each in build/versions/: some 10 minutes each (VERSIONS="0.31 0.33")
	@$(BIN)/python scripts/try_versions.py $(VERSIONS)

nightly: env triton ## tests that are too slow for every day
	@timeout -k 60 10800 $(BIN)/python -m pytest -m nightly $(ARGS)

check: env      ## format, lint, types, and who may import whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@for each in $$(find tests -name conftest.py); do \
	  MYPYPATH=$$(dirname $$each):tests $(BIN)/mypy --no-error-summary $$each || exit 1; done
	$(BIN)/lint-imports

hello: env      ## 2,000 requests to a tiny model on two instances, and how it went
	@$(BIN)/python benchmarks/hello.py --out out/hello $(ARGS)

soak: env       ## minutes of mixed traffic while things break (ARGS="--minutes 30 --seed 1 --instances 3")
	@$(BIN)/python benchmarks/soak.py $(ARGS)

clean:          ## removes the environment and all that was made
	rm -rf .venv out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
