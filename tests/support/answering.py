"""A trainer that answers requests and does nothing else: for screens and commands that ask, without a model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from runner.autostop import StopRule, changed_rule
from runner.metrics import MetricsWriter
from runner.requests import Request, answer, pending


@contextmanager
def answering(run_dir: Path, rule: StopRule, *, step: int = 812, deaf: bool = False) -> Iterator[list[Request]]:
    """A run directory whose metrics.jsonl begins and whose requests are answered from a thread.

    `deaf` takes no notice of them. What was answered is in the list.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    done: list[Request] = []
    over = threading.Event()
    writer = MetricsWriter(run_dir / "metrics.jsonl")
    writer.write("start", run_id="x", max_steps=6000, rule=asdict(rule), obeys=["rule", "save"])
    writer.write("train", step=step, loss=1.0)

    def listen() -> None:
        while not over.wait(0.02):
            for request in [] if deaf else pending(run_dir):
                try:
                    new = changed_rule(rule, request.body)
                except ValueError as error:
                    answer(run_dir, request, writer.write, accepted=False, detail=str(error), step=step)
                else:
                    writer.write("rule", step=step, rule=asdict(new), instead_of=asdict(rule), id=request.id)
                    answer(run_dir, request, writer.write, accepted=True, detail=new.in_words(), step=step)
                done.append(request)

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield done
    finally:
        over.set()
        thread.join()
        writer.close()
