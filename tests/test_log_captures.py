"""Every captured log reads as its truth says: whole, in pieces, cut, mixed with noise, and in other viewers' bytes."""

import random
import re

import pytest

from tests.support.trainer_logs import HERE, complaints, load, read, state

LOGS = sorted(HERE.glob("*.txt"))
NAMES = [p.name.removesuffix(".txt") for p in LOGS]
BARS = [p for p in LOGS if "printer" not in p.name]


def capture(name):
    return load(HERE / f"{name}.txt")


def misplaced(history, truth):
    """Lines that were given a step which the Trainer did not have; None is no step."""
    steps = {}
    for entry in truth["evals"]:
        steps.setdefault(entry["printed"], set()).add(entry["step"])
    wrong = [e for e in history.evals if e.step is not None and e.step not in steps.get(e.printed, ())]
    losses = {e["step"] for e in truth["log_history"] if "loss" in e}
    return wrong + [p for p in history.train if p.step is not None and p.step not in losses]


def test_there_are_enough_captures_of_each_version():
    for version, least in (("4.46.3", 4), ("4.57.6", 5), ("5.23.0", 10)):
        assert sum(name.startswith(version) for name in NAMES) >= least


@pytest.mark.parametrize("path", LOGS, ids=NAMES)
def test_a_captured_log_reads_as_its_truth_says(path):
    data, truth = load(path)
    assert complaints(read(data), truth) == []


@pytest.mark.parametrize("path", LOGS, ids=NAMES)
@pytest.mark.parametrize("size", [1, 97])
def test_a_log_that_is_fed_in_pieces_reads_the_same(path, size):
    data, _ = load(path)
    data = data[:12000]
    assert repr(read(data, size)) == repr(read(data))


@pytest.mark.parametrize("path", LOGS, ids=NAMES)
def test_wherever_a_log_is_cut_no_step_is_wrong_and_no_evaluation_missing(path):
    data, truth = load(path)
    marks = [m.end() for m in re.finditer(rb"[\r\n\x1b[A\]]\{'eval_(?:code_)?loss[^}]*\}", data)]
    one_run = not any(word in path.name for word in ("resume", "repeat", "restart", "tworuns", "noise"))
    for cut in random.Random(path.name).sample(range(1, len(data)), 25):
        history = read(data[:cut])
        if one_run:
            assert misplaced(history, truth) == [], cut
            assert len(history.evals) == sum(mark <= cut for mark in marks), cut
        assert history.max_steps in (None, truth["max_steps"]) or not one_run, cut


@pytest.mark.parametrize("path", BARS, ids=[p.name.removesuffix(".txt") for p in BARS])
def test_a_log_whose_beginning_is_gone_has_no_wrong_step(path):
    data, truth = load(path)
    if any(word in path.name for word in ("restart", "tworuns", "repeat")):
        truth["evals"] += [{"step": e.step, "printed": e.printed} for e in read(data[: len(data) // 2]).evals]
        truth["log_history"] += [{"step": p.step, "loss": p.loss} for p in read(data[: len(data) // 2]).train]
    # without its beginning a log does not tell which set came first
    truth["evals"] += truth.get("evals_of_the_other_set", [])
    for cut in random.Random(path.name + "front").sample(range(1, len(data)), 25):
        assert misplaced(read(data[cut:]), truth) == [], cut


def carried(label):
    """As a carrier of logs gives them out: its label before each line that has something in it."""
    return lambda b: b"\n".join(label + line if line.strip() else line for line in b.split(b"\n"))


VIEWERS = {
    "a collector that splits at carriage returns": lambda b: b.replace(b"\r\n", b"\n").replace(b"\r", b"\n"),
    "escape sequences stripped": lambda b: re.sub(rb"\x1b\[[0-9;]*[A-Za-z]", b"", b),
    "CRLF line ends": lambda b: re.sub(rb"(?<!\r)\n", b"\r\n", b),
    "dicts in colour": lambda b: b.replace(b"{'", b"\x1b[32m{'").replace(b"}\n", b"}\x1b[0m\n"),
    "blanks after each dict": lambda b: b.replace(b"}\n", b"}" + b" " * 200 + b"\n"),
    "docker with timestamps": carried(b"2026-11-23T08:00:00.123456789Z "),
    "kubectl with pod and timestamp": carried(b"[pod/train-0/main] 2026-11-23T08:00:00+01:00 "),
    "compose in colour": carried(b"\x1b[36mtrainer-1  | \x1b[0m"),
    "Ray": carried(b"\x1b[36m(train_loop pid=4711, ip=10.0.0.7)\x1b[0m "),
    "ts": carried(b"Nov  3 08:00:00 "),
}


@pytest.mark.parametrize("change", VIEWERS.values(), ids=VIEWERS)
@pytest.mark.parametrize(
    "name", ["5.23.0-pipe", "5.23.0-pipe-buffered", "4.57.6-tty", "4.46.3-pipe-nan", "5.23.0-pipe-ckpt"]
)
def test_other_viewers_bytes_read_the_same(name, change):
    data, truth = capture(name)
    data = change(data)
    assert complaints(read(data), truth) == []
    assert repr(read(data[:12000], 97)) == repr(read(data[:12000]))


def test_a_crash_behind_a_carriers_labels_is_a_crash_with_its_reason():
    data, truth = capture("5.23.0-pipe-crash")
    plain = read(data)
    for label in (b"2026-11-23T08:00:00Z ", b"[pod/a/b] ", b"(main pid=1) "):
        history = read(carried(label)(data))
        assert complaints(history, truth) == []
        assert plain.end_reason
        assert history.end_reason == plain.end_reason


def test_a_collector_that_stamps_each_piece_between_carriage_returns_hides_nothing():
    data, truth = capture("5.23.0-pipe")
    stamped = carried(b"2026-11-23T08:00:00.5Z ")(data.replace(b"\r\n", b"\n").replace(b"\r", b"\n"))
    assert complaints(read(stamped), truth) == []


NOISE = [
    b"2026-11-22 10:00:00 - INFO - finetune - step 77/9999 (0.8%) loss=9.9 {'eval_loss': 1003.1, 'epoch': 0.5}\n",
    b"wandb: Run data is saved locally in /tmp/wandb/run-1\n",
    b"config {'eval_loss': 'minimise', 'patience': 4, 'max_steps': 99999}\n",
    b"{'eval_loss': 'minimise', 'patience': 4}\n",
    b"[rank1]:[W1122 15:52:48.09 reducer.cpp:1529] Warning: find_unused_parameters=True (function operator())\n",
    b"\rMap (num_proc=4):  50%|#####     | 512/1024 [00:01<00:01, 512.00 examples/s]\n",
    b"dataloader worker 0 prefetched 50%|#####     | 13/26 shards\n",
    b"\xff\xfe\x00broken \xc3\x28 bytes\n",
]


@pytest.mark.parametrize("name", ["5.23.0-pipe", "4.57.6-pipe", "4.46.3-tty", "5.23.0-pipe-ddp2"])
def test_noise_from_other_programs_between_the_lines_changes_nothing(name):
    """Noise comes where a real log has it: after a frame, before the bar is cleared for the next line."""
    data, truth = capture(name)
    pick = random.Random(name)
    pieces = re.split(rb"(?<=it/s\])(?=\r {10})", data)
    assert len(pieces) > 5
    noisy = pieces[0] + b"".join(pick.choice(NOISE) + piece for piece in pieces[1:])
    assert complaints(read(noisy), truth) == []


@pytest.mark.parametrize("name", ["5.23.0-pipe-sets", "5.23.0-pipe-buffered-sets", "4.57.6-pipe-sets"])
def test_of_several_evaluation_sets_the_first_is_shown_and_that_is_said(name):
    history = read(capture(name)[0])
    assert "2 sets are evaluated: eval_code_loss, the first, is shown as eval_loss" in history.warnings


def test_buffered_output_is_named_and_pending_evaluations_have_their_true_step():
    data, _ = capture("5.23.0-pipe-buffered-kill")
    history = read(data)
    assert [e.step for e in history.evals] == [20]
    assert history.pending_evals == (40,)
    assert any("buffered" in w for w in history.warnings)
    assert state(history) == "silent"


def test_while_an_evaluations_text_waits_it_is_pending_and_never_at_a_wrong_step():
    data, truth = capture("4.57.6-pipe-buffered")
    seen = set()
    for cut in range(0, len(data), 61):
        history = read(data[:cut])
        assert misplaced(history, truth) == []
        assert not set(history.pending_evals) & {e.step for e in history.evals}
        seen |= set(history.pending_evals)
    assert seen == {20, 40, 60, 80, 100, 120}


def test_a_resumed_run_is_one_trajectory_with_both_processes():
    data, truth = capture("5.23.0-pipe-repeat")
    history = read(data)
    assert [e.step for e in history.evals] == [20, 40, 60, 80, 100, 120]
    assert {f.process for f in history.frames} == {0, 1}
    assert [p.step for p in history.train] == sorted({p.step for p in history.train})
    assert truth["global_step"] == history.step


def test_a_run_that_began_again_at_zero_is_the_last_run_alone():
    data, _ = capture("5.23.0-pipe-buffered-restart")
    history = read(data)
    assert [e.step for e in history.evals] == [20, 40, 60, 80]
    assert {f.process for f in history.frames} == {0}


def test_a_crash_tells_its_exception_and_shows_the_traceback():
    history = read(capture("5.23.0-pipe-crash")[0])
    assert history.end_reason.startswith("RuntimeError: CUDA out of memory")
    assert history.traceback.startswith("Traceback (most recent call last)")
    assert "on_step_end" in history.traceback


def test_what_the_log_says_of_itself_is_kept():
    info = b"[INFO|trainer.py:2519] >> ***** Running training *****\n  Num examples = 2,000\n"
    history = read(info + b"  Total optimization steps = 60\n" + capture("5.23.0-pipe-ckpt")[0])
    assert history.facts == {"examples": "2000", "max_steps": "60"}
