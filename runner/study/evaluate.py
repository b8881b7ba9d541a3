"""Stages 1, 2 and 4 by lm-eval: its tasks, its scoring, our mask.

The bidirectional prompt needs the border between context and continuation, which the stock model class drops before it
calls the model. `MaskedLM` keeps it: it overrides the one method that has both. Under the causal mask it gives what the
stock class gives (held by a test within 1e-5), under the other it masks the context only. Requests that differ in
nothing but their border must not share logits, so lm-eval's logits cache is off.

Tasks are asked for by name: of lm-eval's own library (needs the network), or YAML files in `evaluate.task_path`, which
work offline. Several ranks share the requests: each takes every n-th, all get all answers.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from runner.errors import NotFoundError, UsageError
from runner.recipe import EvaluateSettings, MaskMode, Recipe
from runner.study.load import Loaded

if TYPE_CHECKING:
    from runner.study.stages import StageScores

try:
    from lm_eval.models.huggingface import HFLM
except ModuleNotFoundError:  # the extra `eval` is not installed
    raise UsageError(
        "The downstream tasks need the package lm-eval, which is not installed.", hint="pip install 'tunewatch[eval]'"
    ) from None

Request = tuple[tuple[str, str], list[int], list[int]]
"""(context and continuation as text, context ids, continuation ids), as lm-eval hands it over."""

_METRICS = ("acc,none", "exact_match,strict-match", "exact_match,none", "exact_match,flexible-extract", "acc_norm,none")
"""What counts as a task's accuracy, the first one that the task reports."""


class MaskedLM(HFLM):  # type: ignore[misc] # lm_eval ships no types
    """lm-eval's Hugging Face model with the prompt mask on the context."""

    def __init__(self, model: Any, tokenizer: Any, mask: MaskMode, *, batch_size: int, max_length: int | None = None):
        self.mask: MaskMode = mask
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            max_length=max_length,
            logits_cache=False,
            device=str(model.device),
        )

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Log-likelihood (nats) and greedy match of each continuation, in the order of the requests."""
        ranks, rank = _world()
        mine = range(rank, len(requests), ranks)
        # longest first: memory runs out at once or never
        order = sorted(mine, key=lambda n: -len(requests[n][1]) - len(requests[n][2]))
        answers: list[tuple[float, bool] | None] = [None] * len(requests)
        size = override_bs or int(self.batch_size)
        for start in range(0, len(order), size):
            part = order[start : start + size]
            for n, answer in zip(part, self._score([requests[n] for n in part]), strict=True):
                answers[n] = answer
        whole = _gather(answers, ranks)
        for request, answer in zip(requests, whole, strict=True):
            if request[0] is not None:
                self.cache_hook.add_partial("loglikelihood", request[0], answer)
        return whole

    def _score(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        rows, borders = [], []
        for _, context, continuation in requests:
            # the last token is only predicted; what does not fit goes on the left
            row = (context + continuation)[-(self.max_length + 1) :][:-1]
            rows.append(row)
            borders.append(len(row) - len(continuation) + 1)
        length = max(len(row) for row in rows)
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        prompt_ids = torch.full_like(ids, -1)
        for n, (row, border) in enumerate(zip(rows, borders, strict=True)):
            ids[n, : len(row)] = torch.tensor(row)
            prompt_ids[n, :border] = 0
        # no padding mask: what lies behind a row on the right is in no block and in nobody's past
        given = {"input_ids": ids}
        if self.mask == "prompt_bidirectional":
            given["prompt_ids"] = prompt_ids
        with torch.no_grad():
            logits = self.model(**{key: value.to(self.device) for key, value in given.items()}).logits  # (B, L, V)
        answers = []
        for n, (_, _, continuation) in enumerate(requests):
            target = torch.tensor(continuation, device=logits.device)
            steps = functional.log_softmax(logits[n, borders[n] - 1 : len(rows[n])].float(), dim=-1)  # (T, V)
            total = steps.gather(1, target[:, None]).sum()
            answers.append((float(total), bool((steps.argmax(-1) == target).all())))
        return answers

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **settings: Any) -> Any:
        """Greedy or sampled continuation; the context is the prompt, its left padding is not."""
        if self.mask == "prompt_bidirectional":
            settings["prompt_ids"] = torch.where(settings["attention_mask"].bool(), 0, -1)
        return super()._model_generate(context, max_length, stop, **settings)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
        """Perplexity has no prompt, so it has a meaning under the causal mask only."""
        if self.mask != "causal":
            raise UsageError("A perplexity task has no prompt; run it under the causal mask.")
        return super().loglikelihood_rolling(requests, disable_tqdm)


def harness(recipe: Recipe, name: str, loaded: Loaded, mask: MaskMode) -> StageScores | None:
    """Run the recipe's lm-eval tasks; the scores are None on all ranks but the first.

    Raises UsageError when a task does not exist or gives no accuracy.
    """
    from lm_eval import __version__, simple_evaluate

    from runner.study.stages import Score, StageScores

    loaded.model.eval()
    settings = recipe.evaluate
    if not settings.tasks:
        raise UsageError("evaluate.tasks is empty; it names the tasks behind the macro.")
    adapter = MaskedLM(
        loaded.model,
        loaded.tokenizer,
        mask,
        batch_size=recipe.train.eval_batch_size,
        max_length=getattr(loaded.model.config, "max_position_embeddings", None),
    )
    manager = tasks_of(settings)
    with _sentences():
        result = simple_evaluate(
            model=adapter,
            tasks=list(settings.tasks),
            num_fewshot=settings.fewshot or None,
            limit=settings.limit or None,
            task_manager=manager,
            bootstrap_iters=0,
            log_samples=False,
            random_seed=recipe.data.seed,
        )
    if result is None:
        return None
    scores = {task: Score(*_accuracy(task, result)) for task in settings.tasks}
    details = {
        "lm_eval": __version__,
        "versions": {task: result["versions"].get(task) for task in settings.tasks},
        "metrics": {task: _metric(task, _found(task, result)) for task in settings.tasks},
        "reported": {task: _reported(_found(task, result)) for task in settings.tasks},
        "num_fewshot": {task: result.get("n-shot", {}).get(task) for task in settings.tasks},
        "limit": settings.limit,
    }
    return StageScores(name, mask, scores, details)


@contextlib.contextmanager
def _sentences() -> Iterator[None]:
    """What the tasks' data sets can meet, in words; the tasks of the library come from the Hub."""
    import datasets

    try:
        yield
    except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
        raise NotFoundError(
            f"The data of a task could not be fetched: {str(error).splitlines()[0]}",
            hint="Without the network, tasks of your own work: evaluate.task_path names their YAML files.",
        ) from error


def tasks_of(settings: EvaluateSettings) -> Any:
    """lm-eval's manager that knows the tasks of the recipe. Raises UsageError for a task that does not exist."""
    return _manager(settings.task_path, settings.tasks)


@functools.cache
def _manager(task_path: str, tasks: tuple[str, ...]) -> Any:
    from lm_eval.tasks import TaskManager

    if task_path and not Path(task_path).is_dir():
        raise UsageError(f"evaluate.task_path: there is no directory {task_path}.")
    own = TaskManager(include_path=task_path, include_defaults=False) if task_path else None
    if own is not None and set(tasks) <= set(own.all_tasks):
        return own
    # lm-eval's own library takes ten seconds to index, so only when it is needed
    manager = TaskManager(include_path=task_path or None)
    unknown = sorted(set(tasks) - set(manager.all_tasks))
    if unknown:
        raise UsageError(f"lm-eval knows no task '{unknown[0]}'.", hint="`lm-eval ls tasks` lists them.")
    return manager


def _found(task: str, result: Any) -> dict[str, Any]:
    return dict(result["results"].get(task) or result.get("groups", {}).get(task) or {})


def _metric(task: str, found: dict[str, Any]) -> str:
    """Which of its metrics counts as the task's accuracy, as `metric,filter`."""
    for metric in _METRICS:
        if metric in found:
            return metric
    raise UsageError(f"The task {task} reports no accuracy (only {', '.join(found) or 'nothing'}).")


def _reported(found: dict[str, Any]) -> dict[str, float]:
    """Every number of a task, so that another average can be taken afterwards (`acc_norm`, where it has one)."""
    numbers = {key: value for key, value in found.items() if "," in key and isinstance(value, (int, float))}
    return {key: float(value) for key, value in numbers.items() if math.isfinite(value)}


def _accuracy(task: str, result: Any) -> tuple[float, float, int]:
    found, n = _found(task, result), _items(task, result)
    metric = _metric(task, found)
    acc = float(found[metric])
    name, _, filtered = metric.partition(",")
    stderr = found.get(f"{name}_stderr,{filtered}")
    if not isinstance(stderr, (int, float)) or not math.isfinite(stderr):
        stderr = math.sqrt(acc * (1 - acc) / n)
    return acc, float(stderr), n


def _items(task: str, result: Any) -> int:
    """Items that were scored, over all subtasks of a group."""
    counts, groups = result["n-samples"], result.get("group_subtasks", {})
    if task in counts:
        return int(counts[task]["effective"])
    return sum(_items(member, result) for member in groups.get(task, ()))


def _world() -> tuple[int, int]:
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size(), distributed.get_rank()
    return 1, 0


def _gather(answers: list[tuple[float, bool] | None], ranks: int) -> list[tuple[float, bool]]:
    """Every rank's share put together, on every rank."""
    if ranks > 1:
        from torch import distributed

        shares: list[Any] = [None] * ranks
        distributed.all_gather_object(shares, answers)
        answers = [next(share[n] for share in shares if share[n] is not None) for n in range(len(answers))]
    missing = sum(answer is None for answer in answers)
    if missing:
        raise RuntimeError(f"{missing} requests were scored by no rank")
    return [answer for answer in answers if answer is not None]
