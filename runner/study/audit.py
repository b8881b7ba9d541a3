"""The audit of a checkpoint: does its mask do what its metadata says, and does nothing leak?

`python -m runner audit MODEL [--data FILE] [--json]`. Every check perturbs something and looks at what changed, on the
loaded model itself in its recorded mode; nothing is taken from a configuration on trust. Exit code 0 when all hold, 1
when one does not.

    answer is causal        changing answer token j never changes a logit before j
    prompt mask             a later prompt token changes an earlier prompt state when it should, and only then
    cache                   greedy generation with a cache gives the logits of the full forward
    padding                 left or right padding and other rows in the batch change nothing
    labels                  the collator labels the answer and only it; the prompt block ends where the labels begin
    label shift             the loss is that of predicting the next token
    chance                  a new model's loss on random answers stays at chance: no label can be read off the input
    overlap                 no eval prompt is in the training set (with --data)
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn import functional

from runner.recipe import DataSettings, MaskMode
from runner.study import demo
from runner.study.data import IGNORE, Encoded, PrefixCollator, Prepared, normalised
from runner.study.load import load_model, read_mask

Collate = Callable[[list[Encoded]], dict[str, Any]]


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    ok: bool
    detail: str
    """What was measured, in words with numbers."""


class Auditor:
    """All checks of one model. `tolerance` is in logits: float32 rounding is near 1e-5, a leak is near 1."""

    def __init__(self, model: Any, tokenizer: Any, mask: MaskMode, *, collate: Collate | None = None, seed: int = 0):
        self.model = model.eval()
        self.mask: MaskMode = mask
        self.vocab = int(model.config.vocab_size)
        self.pad = int(tokenizer.pad_token_id)
        self.collate: Collate = collate or PrefixCollator(self.pad, mask)
        self.random = torch.Generator().manual_seed(seed)
        self.tolerance = 1e-3 if next(model.parameters()).dtype == torch.float32 else 0.15

    def run(self) -> list[Finding]:
        """Every check that needs no data."""
        checks = (
            self.answer_is_causal,
            self.prompt_mask,
            self.cache,
            self.padding,
            self.labels,
            self.label_shift,
            self.chance,
        )
        return [check() for check in checks]

    # what the checks are made of

    def row(self, prompt: int, answer: int) -> Encoded:
        """Random tokens; ids of 3 and more so that no special token is among them."""
        high = max(4, min(self.vocab, self.pad) if self.pad > 3 else self.vocab)
        ids = torch.randint(3, high, (prompt + answer,), generator=self.random)
        return {"input_ids": ids.tolist(), "prompt_len": prompt, "cut": False}

    def forward(self, rows: list[Encoded], *, hidden: bool = False) -> Any:
        """Logits (B, L, V) of collated rows, or the last layer's input states as well."""
        batch = {key: value.to(self.model.device) for key, value in self.collate(rows).items() if key != "labels"}
        with torch.no_grad():
            out = self.model(**batch, output_hidden_states=hidden)
        return (out.logits, out.hidden_states[-1]) if hidden else out.logits

    def other(self, token: int) -> int:
        """A different token."""
        return 3 + (token - 3 + 1) % (min(self.vocab, 64) - 3)

    # the checks

    def answer_is_causal(self) -> Finding:
        """Change each answer token in turn; two rows with different prompt lengths in one batch."""
        rows = [self.row(6, 7), self.row(9, 5)]
        before, worst = self.forward(rows), 0.0
        for n, row in enumerate(rows):
            for j in range(row["prompt_len"], len(row["input_ids"])):
                ids = list(row["input_ids"])
                ids[j] = self.other(ids[j])
                changed = [*rows[:n], _with_ids(row, ids), *rows[n + 1 :]]
                gap = (self.forward(changed)[n, :j] - before[n, :j]).abs().max()
                worst = max(worst, float(gap))
        good = worst <= self.tolerance
        return Finding("answer is causal", good, f"largest change of an earlier logit: {worst:.2g}")

    def prompt_mask(self) -> Finding:
        """Change the last prompt token and look at the states of the prompt before it."""
        row = self.row(8, 4)
        ids = list(row["input_ids"])
        ids[7] = self.other(ids[7])
        _, before = self.forward([row], hidden=True)
        _, after = self.forward([_with_ids(row, ids)], hidden=True)
        moved = float((after[0, :7] - before[0, :7]).abs().max())
        should = self.mask == "prompt_bidirectional"
        said = f"an earlier prompt state moves by {moved:.2g} under '{self.mask}'"
        return Finding("prompt mask", (moved > self.tolerance) == should, said)

    def cache(self) -> Finding:
        """Generate greedily with a growing cache, then score the same tokens in one forward."""
        prompt = torch.tensor([self.row(7, 0)["input_ids"]], device=self.model.device)
        made = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=6,
            min_new_tokens=6,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            pad_token_id=self.pad,
        )
        ids = made.sequences[0].tolist()
        whole = self.forward([{"input_ids": ids, "prompt_len": 7, "cut": False}])[0]
        gap = max(float((step[0] - whole[6 + n]).abs().max()) for n, step in enumerate(made.logits))
        return Finding("cache", gap <= self.tolerance, f"largest difference to the full forward: {gap:.2g}")

    def padding(self) -> Finding:
        """The same row alone, beside a longer one (right padding) and padded on the left."""
        short, long = self.row(4, 3), self.row(9, 6)
        alone = self.forward([short])[0]
        beside = self.forward([short, long])[0, :7]
        batch = {k: v for k, v in self.collate([short]).items() if k != "labels"}
        fill = {"input_ids": self.pad, "attention_mask": 0, "prompt_ids": -1}
        left = {k: functional.pad(v, (5, 0), value=fill[k]).to(self.model.device) for k, v in batch.items()}
        positions = (left["attention_mask"].cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            shifted = self.model(**left, position_ids=positions).logits[0, 5:]
        gap = max(float((alone - beside).abs().max()), float((alone - shifted).abs().max()))
        return Finding("padding", gap <= self.tolerance, f"largest difference to the row alone: {gap:.2g}")

    def labels(self) -> Finding:
        """The collator's labels against the boundary of the row."""
        rows = [self.row(5, 4), self.row(3, 6)]
        batch = self.collate(rows)
        wrong = []
        for n, row in enumerate(rows):
            start, end = row["prompt_len"], len(row["input_ids"])
            labelled = (batch["labels"][n] != IGNORE).nonzero().flatten().tolist()
            if labelled != list(range(start, end)):
                wrong.append(f"row {n} labels {labelled}, the answer is {start}..{end - 1}")
            elif batch["labels"][n, start:end].tolist() != row["input_ids"][start:]:
                wrong.append(f"row {n} labels other tokens than the answer's")
            if "prompt_ids" in batch:
                block = (batch["prompt_ids"][n] >= 0).nonzero().flatten().tolist()
                if block != list(range(start)):
                    wrong.append(f"row {n} has the prompt block {block}, the prompt is 0..{start - 1}")
        given = "prompt_ids" in batch
        if given != (self.mask == "prompt_bidirectional"):
            wrong.append(f"prompt_ids are {'given' if given else 'missing'} under '{self.mask}'")
        return Finding("labels", not wrong, "; ".join(wrong) or "labels are the answer, the block is the prompt")

    def label_shift(self) -> Finding:
        """The model's own loss against the next-token loss computed here from its logits."""
        row = self.row(5, 8)
        batch = {key: value.to(self.model.device) for key, value in self.collate([row]).items()}
        with torch.no_grad():
            loss = float(self.model(**batch).loss)
        logits = self.forward([row])[0].float()
        answer = torch.tensor(row["input_ids"][5:], device=logits.device)
        wanted = float(functional.cross_entropy(logits[4:-1], answer))
        gap = abs(loss - wanted)
        said = f"loss {loss:.4f}, next-token loss of the answer {wanted:.4f}"
        return Finding("label shift", gap <= max(self.tolerance, 1e-3 * wanted), said)

    def chance(self) -> Finding:
        """Try to read random answers off the states that predict them.

        The model's last states at the positions that predict answer tokens are linearly probed for those tokens, on
        rows that the probe has not seen. A model that sees the token it predicts is found out; without a leak the
        probe stays at chance, because the answers are random.
        """
        classes, answer = 8, 6
        states, targets = [], []
        for _ in range(24):
            rows = []
            for _ in range(8):
                row = self.row(6, answer)
                drawn = torch.randint(0, classes, (answer,), generator=self.random)
                rows.append(_with_ids(row, row["input_ids"][:6] + [3 + int(d) for d in drawn]))
                targets.append(drawn)
            _, hidden = self.forward(rows, hidden=True)
            states.append(hidden[:, 5:-1].float().cpu())  # (8, T, D): the position before each answer token
        x, y = torch.cat(states).flatten(0, 1), torch.stack(targets).flatten()
        x = (x - x.mean(0)) / (x.std(0) + 1e-6)
        half = len(x) // 2
        onehot = functional.one_hot(y, classes).float() - 1 / classes
        ridge = x[:half].T @ x[:half] + 100.0 * torch.eye(x.shape[1])
        weights = torch.linalg.solve(ridge, x[:half].T @ onehot[:half])
        hit = float(((x[half:] @ weights).argmax(-1) == y[half:]).float().mean())
        # four standard errors over one in eight: a real leak is read off nearly always
        limit = 1 / classes + 4 * math.sqrt((1 / classes) * (1 - 1 / classes) / half)
        return Finding("chance", hit <= limit, f"a probe reads {hit:.1%} of random answers (chance {1 / classes:.1%})")


def _with_ids(row: Encoded, ids: list[int]) -> Encoded:
    return {"input_ids": ids, "prompt_len": row["prompt_len"], "cut": row["cut"]}


def overlap(data: Prepared, tokenizer: Any) -> Finding:
    """No prompt of the eval set, however it is spelled, stands in the training set."""

    def prompts(rows: Any) -> set[str]:
        texts = (tokenizer.decode(r["input_ids"][: r["prompt_len"]], skip_special_tokens=True) for r in rows.rows)
        return {normalised(text) for text in texts}

    shared = prompts(data.train) & prompts(data.evaluate)
    return Finding("overlap", not shared, f"{len(shared)} of {len(data.evaluate)} eval prompts are in train")


def audit(source: str, *, settings: DataSettings | None = None) -> tuple[MaskMode, list[Finding]]:
    """Audit a local checkpoint or a Hub id in its recorded mode (causal for a stock one)."""
    from pathlib import Path

    place = str(demo.source(source))
    recorded = read_mask(place) if Path(place).is_dir() and (Path(place) / "config.json").is_file() else None
    mask: MaskMode = recorded or "causal"
    loaded = load_model(place, mask=mask)
    findings = Auditor(loaded.model, loaded.tokenizer, mask).run()
    if settings is not None:
        from runner.study.data import prepare, read_pairs

        data = (
            demo.prepared(settings, loaded.tokenizer)
            if settings.dataset == "demo"
            else prepare(read_pairs(settings), loaded.tokenizer, settings)
        )
        findings.append(overlap(data, loaded.tokenizer))
    return mask, findings


def main(arguments: list[str]) -> int:
    """Print one line per check; 0 when all hold, 1 when one does not."""
    parser = argparse.ArgumentParser(
        prog="python -m runner audit", description="Leakage and mask audit of a checkpoint."
    )
    parser.add_argument("model", help="checkpoint directory, Hub id, or 'demo'")
    parser.add_argument("--data", help="'demo', a .jsonl file or a Hub data set, to look for eval prompts in train")
    parser.add_argument("--json", action="store_true", dest="as_json")
    chosen = parser.parse_args(arguments)
    settings = DataSettings(dataset=chosen.data, train_samples=2000, eval_samples=200) if chosen.data else None
    mask, findings = audit(chosen.model, settings=settings)
    good = all(finding.ok for finding in findings)
    if chosen.as_json:
        print(json.dumps({"model": chosen.model, "mask": mask, "ok": good, "checks": [asdict(f) for f in findings]}))  # noqa: T201
    else:
        print(f"{chosen.model}: recorded mask '{mask}'")  # noqa: T201
        for finding in findings:
            print(f"  {'ok  ' if finding.ok else 'FAIL'}  {finding.name:<17} {finding.detail}")  # noqa: T201
    return 0 if good else 1
