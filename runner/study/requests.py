"""What the laptop asks of a training run, obeyed between two steps; `runner.requests` has the files and the answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from runner.errors import TunewatchError
from runner.metrics import MetricsWriter
from runner.requests import SAVE, Request, answer, pending

Handler = Callable[[Request, Any, Any], str]
"""Takes the request, the Trainer's state and its control; returns what was done in words.

It runs on every rank with the same request and must do the same on each. Raises a TunewatchError to refuse, in a
sentence; then nothing may have changed.
"""


class Obey(TrainerCallback):
    """Looks for requests, obeys them, answers each.

    One process looks after every step, at most once in `look_every_s` seconds. With several ranks the first looks when
    a line is logged and after an evaluation, and tells the others: those are the moments at which all of them are here.
    """

    def __init__(
        self,
        run_dir: Path,
        writer: MetricsWriter | None,
        handlers: Mapping[str, Handler],
        *,
        look_every_s: float = 1.0,
    ) -> None:
        self.run_dir = run_dir
        self.writer = writer
        """None on all ranks but the first."""
        self.handlers = dict(handlers)
        self.look_every_s = look_every_s
        self._looked = 0.0

    @property
    def kinds(self) -> list[str]:
        """What this run obeys; the `start` event says so."""
        return sorted(self.handlers)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Between two steps of a single process."""
        now = time.monotonic()
        if args.world_size == 1 and now - self._looked >= self.look_every_s:
            self._looked = now
            self._look(args, state, control)

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """All ranks log their lines together."""
        if args.world_size > 1 and "loss" in given["logs"]:
            self._look(args, state, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An evaluation takes long enough to be asked in the middle of it."""
        self._look(args, state, control)

    def _look(self, args: Any, state: Any, control: Any) -> None:
        found = pending(self.run_dir) if state.is_world_process_zero else []
        if args.world_size > 1:
            found = _tell_all(found)
        for request in found:
            accepted, detail = self._obey(request, state, control)
            if self.writer is not None:
                answer(
                    self.run_dir, request, self.writer.write, accepted=accepted, detail=detail, step=state.global_step
                )

    def _obey(self, request: Request, state: Any, control: Any) -> tuple[bool, str]:
        handler = self.handlers.get(request.kind)
        if request.problem:
            return False, request.problem
        if handler is None:
            return False, f"this run does not know the request '{request.kind}'"
        try:
            return True, handler(request, state, control)
        except TunewatchError as error:
            return False, error.message


def save_now(request: Request, state: Any, control: Any) -> str:
    """Handler of `save`: a checkpoint at this step. The `save` event says when it is whole."""
    control.should_save = True
    return f"saving a checkpoint at step {state.global_step}"


SAVE_HANDLER: Mapping[str, Handler] = {SAVE: save_now}


def _tell_all(found: list[Request]) -> list[Request]:
    """The first rank's list on every rank."""
    from torch import distributed

    box: list[Any] = [found]
    distributed.broadcast_object_list(box, src=0)
    return list(box[0])
