"""Histories and views of runs, made by hand, and hypothesis strategies over them."""

from hypothesis import strategies as st

from estimator.view import RunView, make_view
from runner.autostop import StopRule
from runner.history import EvalPoint, Frame, RunHistory

SEED_EVALS = ((100, 1.2), (200, 1.118), (300, 1.372), (400, 1.400))


def seed_history(step_s: float = 2.7924, eval_s: float = 7.72, step: int = 457) -> RunHistory:
    """The study's run at step 457: 6000 planned, an eval every 100 steps (the first one's loss is not on record)."""
    return RunHistory(
        source="log",
        max_steps=6000,
        step=step,
        elapsed_s=step * step_s + 4 * eval_s,
        evals=tuple(EvalPoint(s, loss, eval_s) for s, loss in SEED_EVALS),
        frames=tuple(Frame(s, s * step_s + eval_s * ((s - 1) // 100), 0) for s in range(1, step + 1)),
    )


def eval_view(losses, horizon, every=1) -> RunView:
    """A run that is known by its evals alone."""
    return make_view(
        step=len(losses) * every,
        horizon=horizon,
        eval_every=every,
        evals=[((i + 1) * every, v, None) for i, v in enumerate(losses)],
    )


rules = st.builds(
    StopRule,
    patience=st.integers(1, 6),
    min_delta=st.sampled_from([0.0, 0.001, 0.003, 0.05]),
    min_steps=st.integers(0, 20),
    count_from=st.sampled_from(["min_steps", "start"]),
)

losses = st.lists(
    st.floats(0.01, 10, allow_nan=False).map(lambda v: round(v, 4)),
    max_size=30,
)
