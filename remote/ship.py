"""What travels to a box: our own code, or somebody's work tree, as one archive named by the hash of its content.

The same content gives the same name on every laptop, so it is sent once per box, and what lies under a name there is
never changed. Times, owners and the order of the file system do not enter the hash.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import runner
from runner.errors import NotFoundError, RefusedError

_SKIP = {"__pycache__", ".git", ".venv", "venv", "node_modules", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".tox"}
MAX_BYTES = 512 << 20
"""A work tree larger than this is refused: it holds data or checkpoints that do not belong in it."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """An archive ready to be sent."""

    name: str
    """First 16 hex digits of the sha256 over names, modes and contents."""
    data: bytes
    """A tar.gz whose members lie at its root."""
    files: int


def our_code() -> Parcel:
    """The package `runner` as it stands here: everything that a box needs of us."""
    root = Path(runner.__file__).parent
    return _pack({f"runner/{path.relative_to(root).as_posix()}": path for path in _walk(root)})


def work_tree(folder: Path) -> Parcel:
    """Somebody's work tree, unchanged. In a git repository: the files git knows or would add; else all but caches.

    Raises NotFoundError when there is none, RefusedError when it is too large, naming the largest files.
    """
    if not folder.is_dir():
        raise NotFoundError(f"The work tree {folder} does not exist.", hint="Correct `workdir` in the recipe.")
    paths = _git_files(folder)
    if paths is None:
        paths = _walk(folder)
    sizes = {path: path.lstat().st_size for path in paths}
    if sum(sizes.values()) > MAX_BYTES:
        largest = sorted(sizes, key=lambda p: sizes[p], reverse=True)[:3]
        named = ", ".join(f"{p.relative_to(folder)} ({sizes[p] / 1e6:.0f} MB)" for p in largest)
        raise RefusedError(
            f"The work tree {folder} has {sum(sizes.values()) / 1e6:.0f} MB; at most {MAX_BYTES >> 20} MB are shipped.",
            hint=f"Keep data out of it, or in .gitignore. The largest: {named}.",
        )
    return _pack({path.relative_to(folder).as_posix(): path for path in paths})


def parcel_of(path: Path) -> Parcel:
    """A file under its own name, or a whole folder, as it stands here."""
    if path.is_file():
        return _pack({path.name: path})
    return _pack({found.relative_to(path).as_posix(): found for found in _walk(path)})


def folder_size(path: Path) -> int:
    """Bytes of a file, or of all that `parcel_of` would take of a folder."""
    return path.stat().st_size if path.is_file() else sum(found.lstat().st_size for found in _walk(path))


def _walk(root: Path) -> list[Path]:
    found = []
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name not in _SKIP)
        found += [Path(folder) / name for name in sorted(files) if not name.endswith(".pyc")]
    return found


def _git_files(folder: Path) -> list[Path] | None:
    """What git would ship; None where there is no git, or no repository."""
    command = ["git", "-C", str(folder), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        answer = subprocess.run(command, capture_output=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode != 0:
        return None
    paths = [folder / os.fsdecode(name) for name in answer.stdout.split(b"\0") if name]
    return sorted(path for path in set(paths) if path.is_symlink() or path.is_file())


def _pack(members: dict[str, Path]) -> Parcel:
    """One archive, the same bytes for the same content."""
    digest = hashlib.sha256()
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, path in sorted(members.items()):
            entry = tarfile.TarInfo(name)
            if path.is_symlink():
                entry.type, entry.linkname = tarfile.SYMTYPE, str(path.readlink())
                digest.update(f"{name}\0->{entry.linkname}\0".encode())
                archive.addfile(entry)
                continue
            data = path.read_bytes()
            entry.size = len(data)
            entry.mode = 0o755 if os.access(path, os.X_OK) else 0o644
            digest.update(f"{name}\0{entry.mode:o}\0{len(data)}\0".encode() + data)
            archive.addfile(entry, io.BytesIO(data))
    return Parcel(digest.hexdigest()[:16], gzip.compress(plain.getvalue(), 6, mtime=0), len(members))
