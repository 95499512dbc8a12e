# What a fresh machine needs. Each target sets the machine up first if necessary.

PYTHON ?= python3
PROFILE ?=
JOBS ?= 2
SEEDS ?= 7 8 9 10 11
RUNS ?= 1

.PHONY: help setup repro test slow-test lint check lock parallel reproduce tolerances demo chat clean
.DEFAULT_GOAL := help

help:                 ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup:                ## make .venv with the pinned packages, if it is missing or out of date
	@$(PYTHON) tools/bootstrap.py

repro: setup          ## run the graph and print the results (PROFILE=smoke: a test in minutes)
	@$(if $(PROFILE),.venv/bin/python -m tools.set_profile $(PROFILE))
	@.venv/bin/python -m tools.repro

test: setup           ## run the quick tests
	@.venv/bin/python -m pytest

slow-test: setup      ## run the slow tests: whole graphs, kills, resumes
	@.venv/bin/python -m pytest -m slow

lint: setup           ## check the code with ruff, lint rules and format
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check

check: setup          ## compare this machine with the profile's and DVC's needs (PROFILE=cpu)
	@.venv/bin/python -m tools.check $(PROFILE)

lock: setup           ## check that dvc.lock belongs to this code and these parameters, in seconds
	@.venv/bin/python -m tools.check_lock

parallel: setup       ## like repro, with JOBS language models trained in parallel (JOBS=4)
	@$(if $(PROFILE),.venv/bin/python -m tools.set_profile $(PROFILE))
	@.venv/bin/python -m tools.repro --jobs $(JOBS)

reproduce: setup      ## run the graph from nothing in a clone and compare with the committed metrics
	@.venv/bin/python -m tools.reproduce

tolerances: setup     ## measure how metrics vary with the seed (SEEDS="7 8 9 10 11", RUNS=1 in parallel)
	@.venv/bin/python -m tools.tolerances --jobs $(RUNS) $(SEEDS)

demo: setup           ## open the chat page at http://127.0.0.1:7860
	@.venv/bin/crawl2cart demo

chat: setup           ## talk to the released model in the terminal
	@.venv/bin/crawl2cart chat

clean:                ## remove results of runs (not .venv, not DVC's cache)
	rm -rf data/raw data/corpus data/rejects data/tokens data/tokenizer data/sft data/prefs data/transcripts
	rm -rf models metrics/report.html metrics/cards .cache .ckpt runs dvc_plots .dvc/tmp/rwlock .dvc/tmp/lock
	find . -name '.*.partial' -not -path './.venv/*' -prune -exec rm -rf {} +
