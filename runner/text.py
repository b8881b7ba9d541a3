"""Whether bytes are text at all: asked of a file before anything is read out of it, so it imports nothing."""

from __future__ import annotations

HEAD = 8192
"""Bytes at the beginning that are looked at for what no terminal writes: one in twenty makes a file a binary one."""
_UNPRINTABLE = bytes({*range(32), 127} - {*b"\b\t\n\f\r\x1b"})


def unprintable(head: bytes) -> int:
    """How many of these bytes no terminal writes."""
    return len(head) - len(head.translate(None, _UNPRINTABLE))


def is_binary(odd: int, seen: int) -> bool:
    """Whether `odd` unprintable bytes among the first `seen` of a file make it no text."""
    return odd * 20 > min(seen, HEAD)
