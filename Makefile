# Two commands set up a fresh machine: `make demo` and `make test`. The rest is for daily work.
PY ?= python3
BIN := .venv/bin
.PHONY: demo demo-cloud test test-fast lint bench shots clean

demo: .venv/demo.stamp        ## the miniature study on this machine, watched live
	$(BIN)/tunewatch demo $(ARGS)

demo-cloud: .venv/demo.stamp  ## offers, launch, watch, kill and bill on a stand-in market with real boxes
	$(BIN)/python -m tests.demo_cloud $(ARGS)

test: .venv/dev.stamp lint    ## everything, the slow ones too
	$(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder $(ARGS)

test-fast: .venv/dev.stamp    ## what runs in a minute
	$(BIN)/python -m pytest -m "not slow" -n 3 --dist loadscope --no-loadscope-reorder $(ARGS)

lint: .venv/dev.stamp         ## style, types, the four floors
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

bench: .venv/dev.stamp        ## every benchmark with its reference, in one run each
	for f in tests/bench/bench_*.py; do PYTHONPATH=. $(BIN)/python $$f || exit 1; done

shots: .venv/dev.stamp        ## the pictures of README and docs
	$(BIN)/python docs/shots.py

clean:                        ## what a build left; runs stay
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/demo.stamp: pyproject.toml constraints.txt
	.ci/setup $(PY) runner && touch $@

.venv/dev.stamp: pyproject.toml constraints.txt
	.ci/setup $(PY) runner,eval,serve,dev --system && touch $@ .venv/demo.stamp
