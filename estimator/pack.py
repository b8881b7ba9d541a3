"""Pack recorded curves into the library that ships: `python -m estimator.pack curves.jsonl [curves.npz]`.

Input: one JSON object a line with kind, repo, path, sub and evals = [[step, loss, eval_runtime, elapsed], ...].
The result is written the same for the same input, so a rebuilt file can be compared byte by byte.
"""

from __future__ import annotations

import json
import math
import sys
import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from estimator.library import FILE, Curve, make_curve


def read_curves(path: Path) -> list[Curve]:
    """Read the JSON lines, empty ones left out; raises ValueError with the line number for one that is not a curve.

    An eval is at least `[step, loss]`; what is missing behind them is unknown.
    """
    curves: list[Curve] = []
    # lines end at a line feed alone: JSON may hold other characters at which Python would split
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row: dict[str, Any] = json.loads(line)
            columns = list(np.array([_reading(entry) for entry in row["evals"]], dtype=np.float64).reshape(-1, 4).T)
        except KeyError as error:
            raise ValueError(f"{path}, line {number}: not a curve (no {error})") from error
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: not a curve ({error})") from error
        curves.append(make_curve([str(row.get(key, "")) for key in ("kind", "repo", "path", "sub")], columns))
    return curves


def _reading(entry: Sequence[float | None]) -> list[float]:
    """Step, loss, seconds of the eval and seconds since the start; NaN for what is not known."""
    if len(entry) < 2:
        raise ValueError(f"an eval is [step, loss, ...], not {entry!r}")
    known = [math.nan if value is None else float(value) for value in entry[:4]]
    return known + [math.nan] * (4 - len(known))


def pack(curves: list[Curve], out: Path) -> int:
    """Write the packed file; returns its size in bytes."""
    arrays = {
        "lengths": np.array([len(c.losses) for c in curves], dtype=np.int32),
        **{key: np.array([getattr(c, key) for c in curves]) for key in ("kind", "repo", "path", "sub")},
        **{key: np.concatenate([getattr(c, key) for c in curves]) for key in ("steps", "losses")},
        **{
            key: np.concatenate([getattr(c, key) for c in curves]).astype(np.float32).astype(np.float64)
            for key in ("runtimes", "elapsed")
        },
    }
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            buffer = BytesIO()
            np.save(buffer, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (2020, 1, 1, 0, 0, 0)), buffer.getvalue(), 8, 9)
    return out.stat().st_size


if __name__ == "__main__":
    source = Path(sys.argv[1])
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else FILE
    packed = read_curves(source)
    sys.stdout.write(f"{len(packed)} curves, {pack(packed, target)} bytes in {target}\n")
