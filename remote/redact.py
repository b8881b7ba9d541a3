"""Secrets taken out of any text before it is shown, logged, raised or written to the journal."""

from __future__ import annotations

import os
import re

_PATTERNS = (
    re.compile(r"(?i)(bearer\s+)[A-Za-z0-9._~+/=-]{8,}"),
    re.compile(r"\bhf_[A-Za-z0-9]{8,}"),
    re.compile(
        r"(?i)\b((?:[a-z0-9]+_)*(?:api_?key|token|secret|password|passwd)[a-z_]*[\"']?\s*[=:]\s*[\"']?)[^\s\"',;}]{6,}"
    ),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
)
_NAMES = ("VAST_API_KEY", "HF_TOKEN", "CONTAINER_API_KEY", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")
_SHORTEST = 8
"""A secret below this length is not looked for: it would black out ordinary words."""


def redact(text: str, *known: str) -> str:
    """`text` with the `known` secrets, those in the environment and everything that looks like one replaced."""
    secrets = {value for value in (*known, *(os.environ.get(name, "") for name in _NAMES)) if len(value) >= _SHORTEST}
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "[redacted]")
    for pattern in _PATTERNS:
        text = pattern.sub(lambda m: f"{m.group(1) if m.re.groups else ''}[redacted]", text)
    return text
