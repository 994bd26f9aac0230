"""Standard output and error that never end a run: a reader that went away, a full disk or a closed stream loses lines,
not predictions."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, TextIO


class FaultTolerantStream:
    """A text stream whose failures are kept in ``failure`` instead of being raised; from then on nothing is written.

    Args:
        stream: what it stands for; None (a process whose stream was closed) is taken as one that failed.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.failure: OSError | None = None
        self._stream = stream if stream is not None else open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115

    def write(self, text: str) -> int:
        """Write as far as that is possible; the characters asked for."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Hand on what is buffered as far as that is possible."""
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
        """What is still buffered, and all that follows, goes to the null device, or Python's exit would fail on it."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, self._stream.fileno())
            finally:
                os.close(nowhere)


def guard_streams() -> FaultTolerantStream:
    """Replace this process's standard output and error; the new standard output."""
    sys.stderr = FaultTolerantStream(sys.stderr)  # type: ignore[assignment]
    sys.stdout = output = FaultTolerantStream(sys.stdout)  # type: ignore[assignment]
    return output
