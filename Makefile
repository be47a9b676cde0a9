# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
#
# Every target works from a clean clone: it sets the environment up first, which
# takes minutes the first time and about a second afterwards.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Only the set-up uses the network.
OFFLINE := HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1

.DEFAULT_GOAL := help
.PHONY: help env setup demo test test-release lint format bench-program-sched bench-vectorq bench-hashattn docs clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | \
		awk -F ':.*## ' '{ printf "  %-22s %s\n", $$1, $$2 }'

env: ## Create .venv with vLLM for CPU and the plugins
	@$(PYTHON) -m scripts.setup_env --no-model

setup: ## The same, and the demo model
	@$(PYTHON) -m scripts.setup_env

demo: setup ## Show program scheduling (or ARGS=--vectorq, ARGS=--hashattn)
	@$(OFFLINE) $(BIN)/python -m benchmarks.demo $(ARGS)

test: setup ## Run all tests
	@$(OFFLINE) $(BIN)/python -m pytest $(ARGS)

test-release: setup ## Test the vLLM surface of another release (RELEASE=0.33.0)
	@$(BIN)/python -m scripts.release_surface $(RELEASE)

lint: env ## Check style, types, spelling and licence headers
	@$(BIN)/python -m scripts.lint

format: env ## Rewrite the sources in the project's format
	@$(BIN)/ruff check --fix-only . && $(BIN)/ruff format .

bench-program-sched: setup ## Benchmark every policy of the program scheduler
	@$(OFFLINE) $(BIN)/python -m benchmarks.program_sched.bench_programs $(ARGS)

bench-vectorq: setup ## Benchmark quality and latency of the semantic cache
	@$(OFFLINE) $(BIN)/python -m benchmarks.vectorq.bench_quality $(ARGS)
	@$(OFFLINE) $(BIN)/python -m benchmarks.vectorq.bench_latency $(ARGS)

bench-hashattn: setup ## Benchmark speed and quality of hash attention
	@$(OFFLINE) $(BIN)/python -m benchmarks.hashattn.bench_op $(ARGS)
	@$(OFFLINE) $(BIN)/python -m benchmarks.hashattn.bench_e2e $(ARGS)
	@$(OFFLINE) $(BIN)/python -m benchmarks.hashattn.bench_quality $(ARGS)

docs: ## Build the documentation into site/
	@$(PYTHON) -m scripts.setup_env --no-model --extra docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## Remove .venv and everything built; the model cache stays
	@$(PYTHON) -m scripts.clean
