"""Standard output and error that never end a run.

Where their reader is gone, the disk is full or the stream is closed, lines are lost, but no predictions.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, TextIO


class FaultTolerantStream:
    """A text stream that keeps its first error in ``failure`` instead of raising it, and from then on writes nothing.

    Args:
        stream: the stream that it replaces; None for a process whose stream was closed: then nothing is written.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.failure: OSError | None = None
        self._stream = stream if stream is not None else open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115

    def write(self, text: str) -> int:
        """Write ``text`` if possible; returns its length in any case."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Write what is buffered if possible."""
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, act: Any) -> None:
        try:
            act()
        except OSError as error:
            self.failure = self.failure or error
            self._to_nowhere()

    def _to_nowhere(self) -> None:
        """Send what is still buffered, and all that follows, to the null device: else Python's exit would fail."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, self._stream.fileno())
            finally:
                os.close(nowhere)


def guard_streams() -> FaultTolerantStream:
    """Replace this process's standard output and error by streams that do not fail; returns the former."""
    sys.stderr = FaultTolerantStream(sys.stderr)  # type: ignore[assignment]
    sys.stdout = output = FaultTolerantStream(sys.stdout)  # type: ignore[assignment]
    return output
