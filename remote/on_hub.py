"""What a run left on the Hub, read by the laptop itself: the newest checkpoint there that is whole by its manifest.

For a run whose box cannot be read any more. Only the small files are fetched (a list of names, a manifest, the
trainer's state); the weights go from the Hub to the new box (`remote.by_hub`), by the revision that was looked at here.
"""

from __future__ import annotations

import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from remote.by_hub import OnHub
from remote.checkpoint_transfer import Cargo
from runner.box.checkpoint import TRAINER_STATE, best_step, eval_at
from runner.errors import NotFoundError, RefusedError, UnreachableError
from runner.manifest import MANIFEST, parse_manifest

HUB = "https://huggingface.co"
ASK_S = 30.0
PAGES = 50
"""Of a list of names, at most."""


def newest_on_hub(repo: str, prefix: str, environment: Mapping[str, str]) -> Cargo | None:
    """The newest whole checkpoint under `prefix` (recipe and stamp of the run) in a repository; None without one.

    Sizes are compared here and hashes where it arrives. `environment` says which Hub (HF_ENDPOINT) and who asks
    (HF_TOKEN). Raises UnreachableError when the Hub does not answer, RefusedError when it lets nobody in.
    """
    hub = (environment.get("HF_ENDPOINT") or HUB).rstrip("/")
    token = environment.get("HF_TOKEN", "")
    try:
        revision = str(_document(f"{hub}/api/models/{repo}", token)["sha"])
        sizes = _sizes(f"{hub}/api/models/{repo}/tree/{revision}/{quote(prefix)}?recursive=true", token)
    except NotFoundError:
        return None
    marked = (re.fullmatch(rf"{re.escape(prefix)}/checkpoint-(\d+)/{re.escape(MANIFEST)}", path) for path in sizes)
    for step in sorted((int(found[1]) for found in marked if found is not None), reverse=True):
        where = OnHub(repo, revision, f"{prefix}/checkpoint-{step}")
        base = f"{hub}/{repo}/resolve/{revision}/{quote(where.prefix)}"
        files = parse_manifest(_bytes(f"{base}/{MANIFEST}", token)[0])
        if files is None or any(
            sizes.get(f"{where.prefix}/{name}") != entry.get("bytes") for name, entry in files.items()
        ):
            continue
        state: dict[str, Any] = {}
        if TRAINER_STATE in files:
            state = _document(f"{base}/{TRAINER_STATE}", token)
        return Cargo(step, where.place, files, eval_at(state, step), state.get("global_step"), best_step(state))
    return None


def _sizes(url: str, token: str) -> dict[str, int]:
    """Path to bytes of every file of a listing, all its pages."""
    found: dict[str, int] = {}
    for _ in range(PAGES):
        body, link = _bytes(url, token)
        rows = json.loads(body)
        found |= {str(row["path"]): int(row["size"]) for row in rows if row.get("type") == "file"}
        after = re.search(r'<([^>]+)>;\s*rel="next"', link)
        if after is None:
            break
        url = after[1]
    return found


def _document(url: str, token: str) -> dict[str, Any]:
    try:
        document = json.loads(_bytes(url, token)[0])
    except ValueError:
        raise UnreachableError("The Hub answered with something that is not its own language.") from None
    return document if isinstance(document, dict) else {}


def _bytes(url: str, token: str) -> tuple[bytes, str]:
    """Body and Link header of one answer."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})  # noqa: S310 - HF_ENDPOINT is the user's own
    try:
        with urllib.request.urlopen(request, timeout=ASK_S) as answer:  # noqa: S310 - as above
            return answer.read(), answer.headers.get("Link") or ""
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise NotFoundError(f"The Hub has no {url.partition('/api/models/')[2] or url}.") from None
        if error.code in (401, 403):
            raise RefusedError(
                f"The Hub lets nobody read the checkpoints with this token ({error.code}).", hint="Set HF_TOKEN."
            ) from None
        raise UnreachableError(f"The Hub answered {error.code}.") from None
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(f"The Hub cannot be reached: {getattr(error, 'reason', error)}.") from None
