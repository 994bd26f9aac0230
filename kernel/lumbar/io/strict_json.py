"""JSON of a bundle, read strictly: limited in size, depth and numbers, without repeated keys, printable text only."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from lumbar.errors import ManifestError
from lumbar.io.regular_file import read_regular
from lumbar.rules import is_printable, shown

MAX_BYTES = 4 << 20  # a manifest of 150 weights has about 0.3 MB
MAX_DEPTH = 32
MAX_TEXT = 20_000  # characters of one text
_MAX_DIGITS = 19  # of a whole number, as 64 bits hold


def read_strictly(path: Path) -> tuple[bytes, Any]:
    """Read a manifest: its bytes, and the JSON value in them.

    Raises:
        ManifestError: not a regular file, too large, not JSON, or with values that no manifest has: nested too deep for
            Python, a key twice in one object, NaN or infinity, a number beyond 64 bits.
    """
    content = read_regular(path, MAX_BYTES, "the weights' manifest")
    try:
        data = json.loads(
            content.decode("utf-8-sig"),
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_int=_whole,
            parse_float=_real,
        )
    except RecursionError:
        raise ManifestError(f"{path}: found values nested too deep to read, expected {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise ManifestError(f"{path}: not JSON ({_one_line(error)}), expected a weights manifest") from None
    return content, data


def require_printable(path: Path, data: Any) -> None:
    """Refuse values that are nested too deep, and text (also keys) that is too long or not printable.

    Raises:
        ManifestError: naming the file and the value.
    """
    level = [data]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += value.keys()
                below += value.values()
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str) and (len(value) > MAX_TEXT or not is_printable(value)):
                raise ManifestError(f"{path}: found {shown(value)}, expected printable text up to {MAX_TEXT} letters")
        if not below:
            return
        level = below
    raise ManifestError(f"{path}: found values nested more than {MAX_DEPTH} levels deep, expected fewer")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for key, value in pairs:
        if key in members:
            raise ValueError(f"found key {shown(key)} twice in one object")
        members[key] = value
    return members


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"found {name}, which is no JSON number")


def _whole(text: str) -> int:
    if len(text) > _MAX_DIGITS + 1:
        raise ValueError(f"found a whole number of {len(text)} digits")
    return int(text)


def _real(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"found the number {shown(text)}, too large for a float")
    return value


def _one_line(error: ValueError) -> str:
    """A parser's message in one line, shortened where it holds the file's bytes, as that of a UnicodeDecodeError."""
    return shown(str(error))[1:-1] if len(str(error)) > 200 else " ".join(str(error).split())
