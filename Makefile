# Two commands set up a fresh machine: `make demo` and `make test`. The rest is for daily work.
PY ?= python3
BIN := .venv/bin
# `make bench BENCH=bench_tui` runs one; BENCH_S are the seconds that each may take
BENCH ?= $(notdir $(basename $(wildcard tests/bench/bench_*.py)))
BENCH_S ?= 900
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

bench: .venv/dev.stamp        ## every benchmark beside its reference; one that fails or hangs is named at the end
	@failed=; for m in $(BENCH); do \
	  echo "== $$m"; timeout -k 10 $(BENCH_S) $(BIN)/python -m tests.bench.$$m </dev/null || failed="$$failed $$m"; \
	done; [ -z "$$failed" ] || { echo "failed:$$failed" >&2; exit 1; }

shots: .venv/dev.stamp        ## the pictures of README and docs
	$(BIN)/python docs/shots.py

clean:                        ## what a build left; runs stay
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/demo.stamp: pyproject.toml constraints.txt
	.ci/setup $(PY) runner && touch $@

.venv/dev.stamp: pyproject.toml constraints.txt
	.ci/setup $(PY) runner,eval,serve,dev --system && touch $@ .venv/demo.stamp
