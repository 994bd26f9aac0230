"""Whether a file is safetensors, and one line where it is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lumbar.errors import ManifestError


def check_safetensors(path: Path) -> None:
    """Refuse a file that is not safetensors, by its header and its size.

    Raises:
        ManifestError: it is not, or it cannot be read.
    """
    with readable(path), safe_open(path, "np") as file:
        file.keys()


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what reading a safetensors file raises into one line.

    Raises:
        ManifestError: in the place of what was raised.
    """
    try:
        yield
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, MemoryError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ManifestError(f"{path}: not readable as safetensors ({reason})") from None
