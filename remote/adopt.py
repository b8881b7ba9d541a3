"""Adopt: take an instance that somebody rented by hand under watch, with its run, its bill and, if asked, a guard.

What is found is what a person would look for: run directories of ours, Hugging Face Trainer logs that grow, tmux
sessions. Nothing on the box is changed unless a guard is asked for. The instance keeps its label; that it is ours to
end stands in the journal, so kill and migrate work on it like on our own.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from typing import Any

from remote.access import Opener, own_key, reach, transport_for_instance
from remote.arming import Wishes, arm, hook_start, limits_for, stand_again
from remote.bootstrap import deliver
from remote.deeds import DeedResult
from remote.desk import Desk
from remote.known import KnownRun, note_run
from remote.money import bill
from remote.provider import Instance, find
from remote.ship import our_code
from remote.transport import AuthError, LinkError, Transport, shell_path
from runner.errors import NotFoundError, RefusedError, TunewatchError

__all__ = ["Candidate", "adopt", "look_for_runs", "transport_for_instance"]

_LOOK = r"""
tmux ls -F 'T #{session_name}' 2>/dev/null
for root in "$HOME" /root /workspace; do
  [ -d "$root" ] && find "$root" -maxdepth 7 -name '.*' -prune -o \
    \( -name log.txt -o -name 'train*.log' -o -name '*.log' -o -name nohup.out \) -type f -size +0c -print 2>/dev/null
done | sort -u | head -n 400 | while IFS= read -r f; do
  if [ -e "$(dirname "$f")/status.json" ] || tail -c 65536 "$f" | grep -aqE "'(loss|eval_loss)': |it/s\]|s/it\]|^# tunewatch run"; then
    printf 'L %s %s %s\n' "$(stat -c %Y "$f" 2>/dev/null || stat -f %m "$f")" "$(wc -c <"$f")" "$f"
  fi
done
date '+N %s'
"""  # noqa: E501 - one pattern


@dataclass(frozen=True, slots=True)
class Candidate:
    """A log on the box that looks like training."""

    path: str
    """Absolute; the run directory where it is one of ours, else the log."""
    bytes: int
    age_s: float
    """Since the last write, on the box's own clock."""
    ours: bool


def look_for_runs(host: Transport) -> tuple[list[Candidate], list[str]]:
    """Logs of training on a box, the freshest first, and the names of its tmux sessions."""
    answer = host.run(_LOOK, timeout=60)
    now = 0.0
    sessions: list[str] = []
    logs: list[tuple[float, int, str]] = []
    for line in answer.stdout.decode("utf-8", "replace").splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "T":
            sessions.append(rest)
        elif kind == "N" and rest.isdigit():
            now = float(rest)
        elif kind == "L":
            written, length, path = rest.split(" ", 2)
            logs.append((float(written), int(length), path))
    found = []
    for stamp, size, path in sorted(logs, reverse=True):
        folder = path.rpartition("/")[0]
        ours = host.run(f"[ -e {shell_path(folder)}/status.json ]", timeout=20).rc == 0
        found.append(Candidate(folder if ours else path, size, max(0.0, now - stamp), ours))
    return found, sessions


def adopt(
    desk: Desk,
    instance_id: int,
    *,
    open_pair: Opener,
    target: str | None = None,
    wishes: Wishes | None = None,
    guard: bool = False,
    attach_key: bool = True,
    python: str = "python3",
) -> tuple[DeedResult, dict[str, Any]]:
    """Take an instance under watch; returns the deed and what was found (`runs`, `sessions`, `target`, `bill`).

    `target` names the log or run directory on the box; without it the freshest is taken. `guard` arms one with
    `wishes`, which needs the container's own key. Raises NotFoundError, RefusedError and what the provider says.
    """
    row = find(desk.listing(), instance_id)
    if row is None:
        raise NotFoundError(f"There is no instance {instance_id} on this account.", hint="See: tunewatch instances.")
    if desk.journal.open_deeds("adopt") and any(
        d.data.get("instance_id") == instance_id and desk.journal.under_way(d.id)
        for d in desk.journal.open_deeds("adopt")
    ):
        raise RefusedError(f"Instance {instance_id} is being adopted in another process.")
    known = desk.journal.box(instance_id)
    run = known.run if known is not None and known.run else f"adopted/{instance_id}"
    with desk.journal.begin("adopt", run, instance_id=instance_id) as deed:
        wishes = wishes or Wishes()
        try:
            found = _take(desk, deed_run=run, row=row, open_pair=open_pair, target=target, attach_key=attach_key)
            host: Transport = found.pop("_host")
            with host:
                if guard:
                    with desk.step("guard") as note:
                        deed.intent("guard", instance=instance_id)
                        folder = _arm(desk, row, host, found["target"], wishes, python, note)
                        deed.done("guard", instance=instance_id, box={"guard": "watching", "guard_dir": folder})
        except TunewatchError as error:
            deed.close("failed", instance=instance_id, why=error.message)
            raise
        deadline = None if wishes.deadline_s is None else desk.clock() + wishes.deadline_s
        deed.close(
            "adopted", instance=instance_id,
            box={"run": run, "label": row.label, "state": "running", "adopted": True, "run_dir": found["target"],
                 "dph_total": row.dph_total, "inet_up_cost": row.inet_up_cost, "inet_down_cost": row.inet_down_cost,
                 "gpu_name": row.gpu_name, "machine_id": row.machine_id, "budget_usd": wishes.budget_usd,
                 "deadline_at": deadline, "lease_s": wishes.lease_s, "idle_s": wishes.idle_s},
        )  # fmt: skip
    found["bill"] = bill(desk.journal, instance_id, desk.clock(), current=row).to_json()
    return desk.result(ok=True, state="running", run=run, instance_id=instance_id), found


def _take(
    desk: Desk, *, deed_run: str, row: Instance, open_pair: Opener, target: str | None, attach_key: bool
) -> dict[str, Any]:
    host = None
    with desk.step("SSH") as note:
        if not row.ssh or row.status != "running":
            raise RefusedError(f"Instance {row.id} is {row.status}; it can be adopted while it runs.")
        try:
            host, pair = reach(row, open_pair)
        except (AuthError, LinkError):
            if not attach_key:
                raise
            # none of our keys is known there: let ours in, which changes nothing for anybody else
            _, public = own_key(desk.journal.home)
            desk.patiently(lambda: desk.provider.attach_key(row.id, public), for_s=30.0)
            note.say("our key was attached")
            host, pair = desk.patiently(lambda: reach(row, open_pair), for_s=90.0)
        note.detail = f"{pair.kind} {pair.host}:{pair.port}"
    with desk.step("look for runs") as note:
        runs, sessions = look_for_runs(host)
        note.detail = f"{len(runs)} logs, tmux: {', '.join(sessions) or 'none'}"
    path = target or (runs[0].path if runs else None)
    if path is None:
        host.close()
        raise NotFoundError(
            f"No training log was found on instance {row.id}.",
            hint=f"Name it: tunewatch adopt {row.id} /path/to/log.txt.",
        )
    if path.startswith("vast:"):
        path = path.split(":", 2)[2]
    host.stat(path)
    where = f"vast:{row.id}:{path}"
    note_run(KnownRun(deed_run, where, None, row.id), desk.journal.home)
    return {
        "_host": host,
        "target": path,
        "watch": where,
        "runs": [asdict(run) for run in runs],
        "sessions": sessions,
    }


def _arm(desk: Desk, row: Instance, host: Transport, target: str, wishes: Wishes, python: str, note: Any) -> str:
    """A guard beside a run that is not ours: it knows budget, deadline and lease; steps it cannot see."""
    if wishes.idle_s is not None and not _is_ours(host, target):
        raise RefusedError(
            "An idle limit needs a run that tunewatch started: a foreign run does not report its steps.",
            hint="Give --budget or --deadline.",
        )
    code, _ = deliver(host, our_code())
    folder = target if _is_ours(host, target) else f"{host.home()}/tunewatch/guards/{row.id}"
    limits = limits_for(
        row, wishes, url=getattr(desk.provider, "url", ""), spent_usd=bill(desk.journal, row.id, desk.clock()).total
    )

    # by its whole path: a start script does not search where an SSH session does
    found = host.run(f"command -v {shlex.quote(python)}", timeout=20).text or python

    def command(words: str) -> str:
        return f"PYTHONPATH={shell_path(code)} {shlex.quote(found)} -m {words}"

    arm(desk, host, folder, limits, command, note)
    root = f"{host.home()}/tunewatch"
    stand_again(host, root, folder, command, limits)
    if not hook_start(host, root):
        note.detail += "; it would not come back after a restart: the box has no start script to change"
    return folder


def _is_ours(host: Transport, target: str) -> bool:
    return host.run(f"[ -e {shell_path(target)}/status.json ]", timeout=20).rc == 0
