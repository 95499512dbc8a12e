# Everything a fresh machine needs: `make repro` runs the graph, `make test` the quick tests. Both set the machine up.

PYTHON ?= python3
PROFILE ?=
JOBS ?= 2
SEEDS ?= 7 8 9 10 11
RUNS ?= 1

.PHONY: help setup repro test slow-test check lock parallel reproduce tolerances demo chat clean
.DEFAULT_GOAL := help

help:                 ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup:                ## make .venv with the pinned packages (nothing to do when it is there)
	@$(PYTHON) tools/bootstrap.py

repro: setup          ## run the graph from crawl to agent, print the results (PROFILE=smoke: all of it in two minutes)
	@$(if $(PROFILE),.venv/bin/python -m tools.set_profile $(PROFILE))
	@.venv/bin/python -m tools.repro

test: setup           ## run the quick tests
	@.venv/bin/python -m pytest

slow-test: setup      ## run the slow tests: whole graphs, kills, resumes
	@.venv/bin/python -m pytest -m slow

check: setup          ## say what this machine has and what the profile needs (PROFILE=cpu)
	@.venv/bin/python -m tools.check $(PROFILE)

lock: setup           ## check that dvc.lock belongs to this code and these parameters (seconds, runs nothing)
	@.venv/bin/python -m tools.check_lock

parallel: setup       ## like repro, with as many language models trained at a time as there are cores for (JOBS=4)
	@$(if $(PROFILE),.venv/bin/python -m tools.set_profile $(PROFILE))
	@.venv/bin/python -m tools.repro --jobs $(JOBS)

reproduce: setup      ## prove the committed metrics: run the graph from nothing in a clone and compare
	@.venv/bin/python -m tools.reproduce

tolerances: setup     ## measure how far metrics move with the seed (SEEDS="7 8 9 10 11", a graph for each; RUNS=1 at a time)
	@.venv/bin/python -m tools.tolerances --jobs $(RUNS) $(SEEDS)

demo: setup           ## open the chat page at http://127.0.0.1:7860
	@.venv/bin/crawl2cart demo

chat: setup           ## talk with the released model in the terminal
	@.venv/bin/crawl2cart chat

clean:                ## remove what runs made (not .venv, not DVC's cache)
	rm -rf data/raw data/corpus data/rejects data/tokens data/tokenizer data/sft data/prefs data/transcripts
	rm -rf models metrics/report.html .cache .ckpt runs dvc_plots .dvc/tmp/rwlock .dvc/tmp/lock
	find . -name '.*.partial' -not -path './.venv/*' -prune -exec rm -rf {} +
