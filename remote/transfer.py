"""Fetching one file whole: streamed, resumed where an earlier try was cut, and put in its place only when complete."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

from remote.transport import LinkError, Sent, Transport, shell_path

_PIECE = 1 << 20


def fetch(host: Transport, remote: str, local: Path, *, timeout: float, sent: Sent | None = None) -> None:
    """Fetch `remote` into `local`. `<local>.part` and a note of size and time beside it make the next try go on.

    A file put together from several tries is compared by its sha256; one that came in a single stream was already
    protected by the cipher's own check. Raises LinkError with the part kept, and what `Transport.stat` raises.
    """
    until = time.monotonic() + timeout
    part, note = local.with_name(local.name + ".part"), local.with_name(local.name + ".part.json")
    info = host.stat(remote)
    mark = {"size": info.size, "mtime": info.mtime}
    local.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.exists() and _same(note, mark) else 0
    note.write_text(json.dumps(mark), encoding="ascii")
    with part.open("r+b" if have else "wb") as out:
        out.seek(have)
        done = have
        if done < info.size:
            stream = host.open_read(remote, done)
            try:
                while done < info.size and (data := stream.read(_PIECE, min(15.0, max(0.1, until - time.monotonic())))):
                    out.write(data)
                    done += len(data)
                    if sent is not None:
                        sent(done, info.size)
                    if time.monotonic() > until:
                        raise LinkError(f"{remote} was not here within {timeout:.0f} s.", exists=str(part))
            finally:
                stream.close()
        out.truncate(min(done, info.size))
    if done < info.size:
        part.unlink()
        raise LinkError(f"{remote} became shorter on {host.name} while it was fetched.")
    if have and not _equal(host, remote, part, until):
        part.unlink()
        raise LinkError(f"{remote} changed on {host.name} between two tries.", hint="Fetch it again.")
    part.replace(local)
    note.unlink(missing_ok=True)


def _same(note: Path, mark: dict[str, float]) -> bool:
    try:
        return bool(json.loads(note.read_text(encoding="ascii")) == mark)
    except (OSError, ValueError):
        return False


def _equal(host: Transport, remote: str, part: Path, until: float) -> bool:
    answer = host.run(f"sha256sum < {shell_path(remote)}", timeout=max(1.0, until - time.monotonic()))
    with part.open("rb") as file:
        mine = hashlib.file_digest(file, "sha256").hexdigest()
    return answer.rc == 0 and answer.text.split()[:1] == [mine]
