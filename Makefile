# Everything that people and CI run. Each target sets up what it needs, once, and never asks anything.
# The first Python that is new enough; `make PYTHON=…` names another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && exit; done; echo python3)
KVLOOM := .venv/bin/kvloom
MODEL ?= qwen2.5-coder-0.5b

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test bench soak fmt docs clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make .venv and install kvloom, llama.cpp built for this CPU (4 to 7 minutes on 2 cores, once)
	@$(PYTHON) tools/setup.py

demo: setup ## fetch the default model and show what kvloom does, on real files
	@$(KVLOOM) pull $(MODEL)
	@$(KVLOOM) demo

serve: setup ## the OpenAI-compatible server with the default model, on http://127.0.0.1:9632/v1
	@$(KVLOOM) pull $(MODEL)
	@$(KVLOOM) serve --model $(MODEL)

test: ## everything that CI checks: format, lint, types, import rules, docs, tests
	@PYTHON="$(PYTHON)" bash tools/check.sh

bench: ## side by side with llama.cpp's own server; tables, and plots in bench-results/
	@$(PYTHON) tools/setup.py --extra bench
	@for name in switch restart fidelity decode codecs room snapshots serve retrieval ask; do \
		$(KVLOOM) bench $$name --plot bench-results/$$name.svg || exit 1; done

soak: ## long runs that watch memory and correctness
	@$(PYTHON) tools/setup.py --extra dev
	@.venv/bin/python -m pytest tests/soak --timeout 7200 -o addopts="--import-mode=importlib -ra"

fmt: ## format the code and fix what the linter can fix
	@$(PYTHON) tools/setup.py --extra dev
	@.venv/bin/ruff format . && .venv/bin/ruff check --fix .

docs: ## write the generated docs again
	@$(PYTHON) tools/setup.py
	@.venv/bin/python tools/cli_docs.py
	@.venv/bin/python -m tools.settings_docs

clean: ## remove .venv and the tools' caches; models and wheels in your cache folder stay
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
