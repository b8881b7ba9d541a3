"""The reader on bytes of every other kind: arbitrary ones, other trainers' habits, very long logs."""

import itertools
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runner.history import Frame, TrainPoint
from runner.log import LogReader
from runner.log_words import Record
from runner.thin import Thinned, thin_frames, thin_train
from tests.support.trainer_logs import read, state

BAR = "\r{0:3.0f}%|████      | {1}/{2} [{3}<00:10, 10.00it/s]"
CLEAR = b"\r" + b" " * 60 + b"\r"
INSIDE = b"\r  0%|          | 0/16 [00:00<?, ?it/s]\x1b[A"
CLOSED = b"\r100%|##########| 16/16 [00:01<00:00, 9.00it/s]\x1b[A\n" + b"\r" + b" " * 60 + b"\x1b[A"


def bar(n, total=1000, clock=None):
    clock = clock or f"{n // 600:02d}:{n // 10 % 60:02d}"
    return BAR.format(100 * n / total, n, total, clock).encode()


def start(total=1000):
    return b"\r  0%%|          | 0/%d [00:00<?, ?it/s]" % total


def loss(n, total=1000, value="1.5", epoch=None, clock=None):
    text = f"{{'loss': '{value}', 'grad_norm': '0.5', 'learning_rate': '1e-4', 'epoch': '{epoch or n / 250:.4g}'}}\n"
    return CLEAR + text.encode() + bar(n, total, clock)


def evaluation(n, total=1000, value="1.25", text=None):
    line = text or f"{{'eval_loss': '{value}', 'eval_runtime': '1.5', 'epoch': '{n / 250:.4g}'}}\n".encode()
    return b"\n" + INSIDE + CLEAR + b"\n" + CLEAR + b"\x1b[A" + line + bar(n, total) + b"\n" + CLOSED


def run(steps, total=1000, every=10, evals=50):
    out = start(total)
    for n in range(1, steps + 1):
        out += bar(n, total)
        if n % every == 0:
            out += loss(n, total)
        if n % evals == 0:
            out += evaluation(n, total, value=f"{2 - n / 1000:.4g}")
    return out


FRAGMENTS = [
    *(b"\r", b"\n", b"\r\n", b"\x1b[A", b"\x1b[2K", b"\x1b", b" " * 30, b"x", b"\x00", b"\xff", CLEAR, INSIDE, CLOSED),
    *(start(), start(16), bar(3), bar(10), bar(10, 16), bar(500), bar(999), bar(1000)),
    *(loss(10), loss(500), evaluation(20), b"{'loss': '1.5'", b", 'epoch': '0.1'}", b"%|", b"| 3/"),
    *(b"{'eval_loss': nan, 'epoch': 0.1}", b"{'train_loss': 1.0, 'epoch': 1.0}\n", b"17% 34/204 [01:03<05:30]"),
    *(b"Traceback (most recent call last):\n", b"ValueError: no\n", b"[rank0]: ", b"Killed\n"),
    *(b"Writing model shards: 100%|##| 1/1 [00:00<00:00]", b"  Total optimization steps = 1,000\n"),
]


def in_pieces(data, cuts):
    reader = LogReader()
    places = [0, *sorted(c for c in cuts if c < len(data)), len(data)]
    for begin, end in itertools.pairwise(places):
        reader.feed(data[begin:end])
        reader.history()
    return reader.history()


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=12), max_size=25).map(b"".join),
    st.sets(st.integers(1, 900), max_size=40),
)
@example(b"\r  0%|          | 0/16 [00:00<?, ?it/s]\x1b[A" * 3, set())
def test_any_bytes_in_any_pieces_give_one_history_and_no_exception(data, cuts):
    whole = read(data)
    assert repr(in_pieces(data, cuts)) == repr(whole)
    state(whole)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=2000))
def test_no_byte_string_raises(data):
    assert read(data).bytes_read == len(data)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 120), st.sets(st.integers(0, 12000), max_size=20))
def test_a_made_log_reads_exactly_in_any_pieces(steps, cuts):
    data = run(steps, every=7, evals=20)
    history = in_pieces(data, cuts)
    assert [e.step for e in history.evals] == list(range(20, steps + 1, 20))
    assert [p.step for p in history.train] == list(range(7, steps + 1, 7))
    assert (history.step, history.max_steps) == (steps, 1000)
    assert history.pauses == tuple((s, "eval", 1.5, 0) for s in range(20, steps + 1, 20))


def test_an_empty_log_and_a_binary_one_are_no_run():
    assert read(b"").source == "none"
    history = read(bytes(range(256)) * 400)
    assert (history.step, history.evals, history.max_steps) == (None, (), None)


def test_the_log_of_another_trainer_is_no_run():
    history = read(
        b"iter 100: loss 2.31, time 12.1ms, mfu 3.1%\nstep 5 eval_loss=2.0\nmetric_for_best_model: eval_loss\n" * 20
    )
    assert (history.step, history.evals, history.train) == (None, (), ())


def test_bars_of_the_data_preparation_are_not_the_training():
    prepare = b"".join(b"\r%3d%%|##| %d/71514 [00:01<00:01, 9.0it/s]" % (n * 10, n * 7151) for n in range(10))
    prepare += b"\r100%|##########| 71514/71514 [00:02<00:00, 9.0it/s]\n"
    history = read(prepare + run(40))
    assert (history.max_steps, history.step) == (1000, 40)
    assert history.pauses == ()


def test_a_prediction_after_the_end_is_not_another_run():
    end = CLEAR + b"{'train_runtime': '9', 'train_loss': '2.5', 'epoch': '0.2'}\n" + bar(50, 50) + b"\n"
    after = b"".join(b"\r%3d%%|##| %d/77 [00:00<00:01, 9.0it/s]" % (n, n) for n in range(1, 78)) + b"\n"
    history = read(run(50, 50) + end + b"\r  0%|          | 0/77 [00:00<?, ?it/s]" + after)
    assert (state(history), history.step, history.max_steps) == ("finished", 50, 50)


def test_metrics_printed_again_by_user_code_are_not_another_evaluation():
    again = b"{'eval_loss': 1.2500123, 'eval_runtime': 1.5, 'epoch': 0.2}\n"
    history = read(run(49) + bar(50) + evaluation(50) + again + bar(51))
    assert [e.step for e in history.evals] == [50]


def test_a_traceback_that_training_survives_is_no_crash():
    trace = b"Traceback (most recent call last):\n  File 'x.py', line 1\nConnectionError: wandb\n"
    assert state(read(run(30) + trace + bar(31))) == "crashed"
    assert read(run(30) + trace + bar(31) + bar(32)).ended is None
    assert read(run(30) + b"Exception ignored in: <function f>\n" + trace).ended is None


def test_the_root_of_a_distributed_crash_is_named_and_not_the_launcher():
    lines = (
        b"[rank1]: Traceback (most recent call last):\n[rank1]:   File 'x.py', line 1\n[rank1]: ValueError: rank one\n"
    )
    lines += b"[rank0]: Traceback (most recent call last):\n[rank0]: RuntimeError: connection reset\n"
    lines += b"Traceback (most recent call last):\n  File 'run.py'\ntorch.distributed.elastic.ChildFailedError:\n"
    history = read(run(20) + lines)
    assert (history.ended, history.end_reason) == ("crashed", "ValueError: rank one")


@pytest.mark.parametrize(
    ("line", "words"), [(b"Killed\n", "Killed"), (b"bash: line 1:  4242 Killed    python t.py\n", "Killed")]
)
def test_a_shells_last_word_is_the_reason(line, words):
    history = read(run(20) + b"\n" + line)
    assert (history.ended, history.end_reason) == ("crashed", words)


def test_colab_bars_without_blocks_place_their_dicts():
    """One bar a line, each dict before its bar, nothing cleared: the frame after the dict is its step."""
    text = b""
    for n in range(1, 41):
        if n % 10 == 0:
            text += b"{'loss': 1.5, 'learning_rate': 1e-4, 'epoch': %.2f}\n" % (n / 20)
        text += b" %d%% %d/204 [00:%02d<05:30, 1.94s/it]\n" % (n * 100 // 204, n, n)
    history = read(text)
    assert (history.step, history.max_steps) == (40, 204)
    assert all(p.step in (None, round(p.epoch * 20)) for p in history.train)


def test_a_dict_wrapped_by_a_terminal_is_one_dict():
    wrapped = evaluation(50, text=b"{'eval_loss': '1.25', 'eval_run\ntime': '1.5', 'epoch': '0.2'}\n")
    assert [(e.step, e.eval_runtime) for e in read(run(49) + bar(50) + wrapped).evals] == [(50, 1.5)]


def test_extra_keys_of_other_trainers_and_nested_quotes_do_no_harm():
    extra = b"{'loss': 1.5, 'entropy': 0.9, 'num_tokens': 1234.0, 'note': \"it's {fine}\", 'epoch': 0.04}"
    record = Record(extra)
    assert (record.number(b"loss"), record.epoch, record.is_trainers) == (1.5, 0.04, True)
    wrapped = Record(b"{'eval_loss': np.float64(1.5), 'eval_acc': tensor(0.5), 'epoch': 0.04}")
    assert (wrapped.number(b"eval_loss"), wrapped.number(b"eval_acc")) == (1.5, 0.5)
    history = read(start() + bar(9) + CLEAR + extra + b"\n" + bar(10))
    assert [(p.step, p.loss) for p in history.train] == [(10, 1.5)]


def test_a_step_that_the_line_itself_names_is_taken():
    line = b"{'eval_loss': 1.5, 'epoch': 0.1, 'global_step/max_steps': '25/100', 'eval_runtime': 2.0}\n"
    history = read(line)
    assert [(e.step, history.max_steps) for e in history.evals] == [(25, 100)]


def test_writing_by_other_code_through_the_bar_does_not_shift_the_lines():
    data = start()
    for n in range(1, 61):
        data += bar(n)
        if n % 5 == 0:
            data += CLEAR + b"note from a callback\n" + bar(n)
        if n % 10 == 0:
            data += loss(n)
        if n % 20 == 0:
            data += evaluation(n)
    history = read(data)
    assert [p.step for p in history.train] == [10, 20, 30, 40, 50, 60]
    assert [e.step for e in history.evals] == [20, 40, 60]


def test_looking_again_without_news_gives_the_same_object():
    reader = LogReader()
    reader.feed(run(20))
    assert reader.history() is reader.history()


def test_a_long_log_stays_small_and_keeps_its_extremes():
    reader = LogReader()
    reader.feed(start(30000))
    for n in range(1, 30001):
        value = "99" if n == 12345 else "0.001" if n == 23456 else f"{1.5 + n % 5 / 100:.4g}"
        clock = f"{n // 3600}:{n // 60 % 60:02d}:{n % 60:02d}"
        reader.feed(bar(n, 30000, clock) + loss(n, 30000, value, clock=clock))
    history = reader.history()
    assert len(history.train) < 9000
    assert len(history.frames) < 9000
    assert {99.0, 0.001} <= {p.loss for p in history.train}
    assert (history.step, history.train[-1].step) == (30000, 30000)
    assert history.elapsed_s == 30000


def resumed_twice():
    """A run of 120 steps that was killed at 60 and at 100 and resumed from 40 and 80; each time it evaluates again."""
    out = b""
    for first, last in ((0, 60), (40, 100), (80, 120)):
        out += start()
        for n in range(first + 1, last + 1):
            out += bar(n)
            if n % 4 == 0:
                out += loss(n)
            if n % 10 == 0:
                out += evaluation(n, value=f"{2 - n / 1000 + first / 1e4:.4g}")
    return out


def without_bars(evals):
    lines = [f"{{'eval_loss': '{1 + 1 / n:.4g}', 'eval_runtime': '1.5', 'epoch': '{n}'}}\n" for n in range(1, evals)]
    return "".join(lines).encode()


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (resumed_twice(), 1500),
        (run(300, evals=2), 2500),
        (run(300, evals=2)[20_000:], 2500),
        (without_bars(200), 500),
    ],
    ids=["resumed twice", "150 evaluations", "150 evaluations, beginning gone", "no bars"],
)
def test_however_often_somebody_looks_the_history_is_the_same(data, size):
    reader = LogReader()
    for end in range(size, len(data) + size, size):
        reader.feed(data[end - size : end])
        assert repr(reader.history()) == repr(read(data[:end]))


def test_a_resumed_run_keeps_one_evaluation_of_a_step_and_the_newer_one():
    history = read(resumed_twice())
    assert [e.step for e in history.evals] == list(range(10, 121, 10))
    assert [p.step for p in history.train] == list(range(4, 121, 4))
    assert next(e for e in history.evals if e.step == 90).eval_loss == pytest.approx(2 - 0.09 + 0.008)
    assert {p.process for p in history.pauses} == {f.process for f in history.frames} == {0, 1, 2}


def calls_of_a_look(log, more):
    """How many function calls a look takes after `more` came in."""
    reader = LogReader()
    reader.feed(log)
    reader.history()
    reader.feed(more)
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        reader.history()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("resumed", [False, True])
def test_a_look_costs_what_is_new_and_not_what_the_log_holds(resumed):
    def log(steps):
        before = run(40, 100_000) if resumed else b""
        return before + start(100_000) + b"".join(evaluation(n, 100_000) for n in range(50, steps, 10))

    def more(n):
        return evaluation(n, 100_000) + loss(n + 2, 100_000)

    short, long = calls_of_a_look(log(200), more(200)), calls_of_a_look(log(20_000), more(20_000))
    assert long <= short + 20


def test_a_line_without_end_is_not_kept():
    reader = LogReader()
    for _ in range(200):
        reader.feed(b"x" * 65536)
    assert len(reader._scanner._open) < 100_000
    reader.feed(b"\n" + run(20))
    assert reader.history().step == 20


losses = st.floats(allow_nan=True, allow_infinity=True, width=32)


@settings(deadline=None)
@given(st.lists(losses, min_size=1, max_size=400), st.integers(16, 64))
def test_thinning_keeps_the_lowest_the_highest_the_first_and_the_last(values, limit):
    series = Thinned(thin_train, limit)
    for step, value in enumerate(values):
        series.append(TrainPoint(step, value))
    kept = series.items()
    finite = [v for v in values if abs(v) != float("inf") and v == v]
    if finite:
        assert {min(finite), max(finite)} <= {p.loss for p in kept}
    assert (kept[0].step, kept[-1].step) == (0, len(values) - 1)
    assert len(kept) <= limit
    assert [p.step for p in kept] == sorted(p.step for p in kept)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=200).map(sorted))
def test_thinning_progress_keeps_the_ends_of_each_process(processes):
    frames = [Frame(i, float(i), p) for i, p in enumerate(processes)]
    kept = thin_frames(frames)
    for process in set(processes):
        mine = [f for f in frames if f.process == process]
        assert {mine[0], mine[-1]} <= set(kept)


def test_words_that_end_without_a_line_feed_hide_no_dict():
    text = b"tick{'eval_loss': '1.25', 'eval_runtime': '1.5', 'epoch': '0.2'}\n"
    assert [e.step for e in read(run(49) + bar(50) + evaluation(50, text=text)).evals] == [50]


def test_a_sentence_with_a_dict_in_it_is_no_evaluation():
    text = b"2026-11-22 - INFO - done: {'eval_loss': 1003.1, 'eval_runtime': 1.0, 'epoch': 0.5}\n"
    assert read(run(49) + text + bar(50)).evals == ()


def test_words_of_others_between_an_evaluations_bar_and_its_move_begin_no_new_run():
    noisy = evaluation(50).replace(INSIDE, INSIDE.replace(b"\x1b[A", b"[rank1] warning\n\x1b[A"), 1)
    history = read(run(49) + bar(50) + noisy + bar(51))
    assert (history.max_steps, history.step, [e.step for e in history.evals]) == (1000, 51, [50])
