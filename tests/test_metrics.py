"""metrics.jsonl: what was written is what is read, whatever is torn, full, repeated or cut."""

import itertools
import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.autostop import StopRule, StopState, replay
from runner.history import StageResult
from runner.metrics import MetricsReader, MetricsWriter

ROOT = Path(__file__).parent.parent


def read(data):
    reader = MetricsReader()
    reader.feed(data)
    return reader.history()


def lines(*events):
    return b"".join(json.dumps({"mono": i, "wall": 100 + i, **e}).encode() + b"\n" for i, e in enumerate(events))


START = {"event": "start", "run_id": "r", "max_steps": 100, "resumed_from": None}


def test_every_event_that_is_written_is_read_back(tmp_path):
    state = replay(StopRule(2, 0.01, 0), [(20, 1.5), (40, 1.5), (60, 1.5)])
    with MetricsWriter(tmp_path / "m") as writer:
        rule = {"patience": 2, "min_delta": 0.01, "min_steps": 0, "count_from": "start"}
        writer.write("start", run_id="r", max_steps=100, resumed_from=None, rule=rule, mask="prefix", recipe="demo")
        writer.write("train", step=10, loss=2.5, grad_norm=0.5, learning_rate=1e-3, epoch=0.1)
        writer.write("eval", step=20, eval_loss=1.5, eval_runtime=0.25, epoch=0.2)
        writer.write("save", step=20, seconds=1.5, path="checkpoint-20", bytes=10)
        writer.write("autostop", step=60, state=state.to_dict(), phase="fired", reason="plateau")
        writer.write("upload", step=20, status="done", revision="abc", seconds=2.0)
        writer.write("stage_begin", name="stage1")
        writer.write("stage", name="stage1", macro=0.9, tasks={"sum": 0.9, "odd": {"acc": 0.5}})
        writer.write("ack", request="stop", detail="saving")
        writer.write("end", step=60, reason="plateau", rc=10, runtime_s=12.5)
    history = read((tmp_path / "m").read_bytes())
    assert (history.run_id, history.max_steps, history.step, history.ended) == ("r", 100, 60, "stopped")
    assert history.end_reason == "plateau"
    assert history.train[0][:5] == (10, 2.5, 0.5, 1e-3, 0.1)
    assert (history.evals[0].step, history.evals[0].eval_loss, history.evals[0].eval_runtime) == (20, 1.5, 0.25)
    assert [(p.step, p.kind, p.seconds) for p in history.pauses] == [(20, "eval", 0.25), (20, "save", 1.5)]
    assert history.rule == StopRule(2, 0.01, 0, "start")
    assert history.declared_stop == state
    assert history.stages == (StageResult("stage1", 0.9, {"sum": 0.9, "odd": 0.5}),)
    assert history.stage is None
    assert [n.kind for n in history.notes] == ["save", "autostop", "upload", "ack"]
    assert history.facts["mask"] == "prefix"
    assert history.warnings == ()


def test_numbers_that_are_not_finite_are_strict_json_and_come_back(tmp_path):
    with MetricsWriter(tmp_path / "m") as writer:
        writer.write("eval", step=1, eval_loss=math.nan, extra={"deep": [math.inf, -math.inf]})
    raw = (tmp_path / "m").read_text()
    record = json.loads(raw, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    assert record["extra"]["deep"] == ["inf", "-inf"]
    history = read(raw.encode())
    assert math.isnan(history.evals[0].eval_loss)
    assert history.evals[0].printed == "nan"
    assert "eval_loss at step 1 is nan" in history.warnings


def test_a_line_torn_by_a_crash_costs_that_line_alone(tmp_path):
    path = tmp_path / "m"
    with MetricsWriter(path) as writer:
        writer.write("train", step=1, loss=1.0)
        writer.write("train", step=2, loss=1.0)
    path.write_bytes(path.read_bytes()[:-9])
    with MetricsWriter(path) as writer:
        writer.write("train", step=3, loss=1.0)
    history = read(path.read_bytes())
    assert [p.step for p in history.train] == [1, 3]
    assert history.warnings == ("1 line(s) of metrics.jsonl could not be read",)


def test_a_full_disk_does_not_end_the_training_and_the_gap_is_told(tmp_path):
    """A limit on the file's size stands for the full disk: the write fails or stops in the middle of a line."""
    script = f"""
import resource, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from runner.metrics import MetricsWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = MetricsWriter({str(tmp_path / "m")!r})
writer.write("train", step=1, loss=1.0)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (150, hard))
answers = [writer.write("train", step=s, loss=1.0, pad="x" * 40) for s in (2, 3, 4)]
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
answers.append(writer.write("train", step=5, loss=1.0))
print(answers)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[False, False, False, True]"
    history = read((tmp_path / "m").read_bytes())
    assert [p.step for p in history.train] == [1, 5]
    assert "3 event(s) were not recorded (disk full)" in history.warnings
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 150


def test_a_resumed_run_goes_on_and_an_eval_seen_twice_counts_once():
    history = read(
        lines(
            START,
            {"event": "train", "step": 10, "loss": 3.0},
            {"event": "eval", "step": 20, "eval_loss": 2.0},
            {"event": "train", "step": 25, "loss": 2.5},
            {**START, "resumed_from": 20},
            {"event": "train", "step": 25, "loss": 2.6},
            {"event": "eval", "step": 20, "eval_loss": 2.1},
            {"event": "eval", "step": 40, "eval_loss": 1.9},
        )
    )
    assert [(e.step, e.eval_loss) for e in history.evals] == [(20, 2.1), (40, 1.9)]
    assert [(p.step, p.loss) for p in history.train] == [(10, 3.0), (25, 2.6)]
    assert history.elapsed_s == 6.0
    assert {f.process for f in history.frames} == {0, 1}


def test_a_run_that_began_again_from_nothing_drops_what_was_before():
    history = read(
        lines(
            START,
            {"event": "eval", "step": 20, "eval_loss": 2.0},
            {"event": "end", "step": 20, "rc": 1, "reason": "crash"},
            {**START, "run_id": "s"},
            {"event": "eval", "step": 10, "eval_loss": 3.0},
        )
    )
    assert [(e.step, e.eval_loss) for e in history.evals] == [(10, 3.0)]
    assert (history.run_id, history.ended, history.step) == ("s", None, 10)


@pytest.mark.parametrize(
    ("rc", "ended"), [(0, "finished"), (10, "stopped"), (11, "stopped"), (12, "stopped"), (1, "crashed")]
)
def test_the_end_is_named_by_the_exit_codes_of_the_contract(rc, ended):
    assert read(lines(START, {"event": "end", "step": 5, "rc": rc, "reason": "x"})).ended == ended


def test_looking_again_without_news_gives_the_same_object():
    reader = MetricsReader()
    reader.feed(lines(START))
    assert reader.history() is reader.history()


@settings(deadline=None, max_examples=60)
@given(st.sets(st.integers(1, 1900), max_size=60))
def test_any_chunking_gives_the_same_history(cuts):
    events = [START, *({"event": "train", "step": i, "loss": 3 - i / 10} for i in range(1, 20))]
    raw = lines(*events, {"event": "eval", "step": 20, "eval_loss": 1.0}) + b"{torn"
    places = [0, *sorted(c for c in cuts if c < len(raw)), len(raw)]
    reader = MetricsReader()
    for start, end in itertools.pairwise(places):
        reader.feed(raw[start:end])
        reader.history()
    assert reader.history() == read(raw)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["start", "train", "eval", "save", "autostop", "stage", "end", "gap", "progress", "ack", "x"])
keys = st.sampled_from(["step", "loss", "eval_loss", "state", "tasks", "name", "macro", "rc", "mono", "rule", "lost"])


@settings(deadline=None)
@given(st.lists(st.tuples(names, st.dictionaries(keys, json_values)), max_size=6))
def test_no_event_of_any_content_raises(events):
    read(b"".join(json.dumps({**fields, "event": name}).encode() + b"\n" for name, fields in events))


@given(st.binary(max_size=300))
def test_no_bytes_raise(data):
    assert read(data).bytes_read == len(data)


def test_a_long_series_is_thinned_and_keeps_its_extremes():
    reader = MetricsReader()
    for i in range(1, 60001):
        loss = 99.0 if i == 30001 else -5.0 if i == 41234 else 1.0 + (i % 7) / 100
        reader.feed(b'{"event":"train","step":%d,"loss":%a,"mono":%d}\n' % (i, loss, i))
    train = reader.history().train
    assert len(train) < 9000
    assert {99.0, -5.0} <= {p.loss for p in train}
    assert (train[0].step, train[-1].step) == (1, 60000)
    assert [p.step for p in train] == sorted(p.step for p in train)


def test_an_unknown_declared_state_or_rule_is_passed_over():
    history = read(
        lines({**START, "rule": {"patience": -3}}, {"event": "autostop", "step": 1, "state": {"bad": 1, "new": 2}})
    )
    assert history.rule is None
    assert history.declared_stop == StopState(bad=1)


def test_a_writer_in_another_process_does_not_mix_lines(tmp_path):
    path = tmp_path / "m"
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from runner.metrics import MetricsWriter
w = MetricsWriter({str(path)!r})
for i in range(300): w.write("train", step=i, loss=1.0, who=sys.argv[1])
"""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    both = [subprocess.Popen([sys.executable, "-c", code, who], env=env) for who in "ab"]
    assert [p.wait() for p in both] == [0, 0]
    records = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert len(records) == 600
