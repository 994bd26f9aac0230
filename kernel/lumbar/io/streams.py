"""Standard output and error whose reader may go.

``FaultTolerantStream`` never ends a run: where the reader is gone, the disk is full or the stream is closed, lines are
lost, but no predictions. ``EndingStream`` ends a command that has nothing left to say to anybody.
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
            _to_nowhere(self._stream)


READER_GONE = 141  # the status of a program that SIGPIPE ends, as a shell shows it: 128 and the signal's number


class ReaderGone(SystemExit):
    """Nobody reads a command's output any more (``| head``): the command ends without a word."""

    def __init__(self) -> None:
        super().__init__(READER_GONE)


class EndingStream:
    """A text stream that ends the command (``ReaderGone``) once its reader is gone; other errors are raised as ever.

    Args:
        stream: the stream that it replaces.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write ``text``; returns its length."""
        try:
            return self.stream.write(text)
        except BrokenPipeError:
            raise self._gone() from None

    def flush(self) -> None:
        """Write what is buffered."""
        try:
            self.stream.flush()
        except BrokenPipeError:
            raise self._gone() from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _gone(self) -> ReaderGone:
        _to_nowhere(self.stream)
        return ReaderGone()


def end_with_reader() -> None:
    """Replace this process's standard output and error by streams that end the command once nobody reads them."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, EndingStream):
            setattr(sys, name, EndingStream(stream))


def _to_nowhere(stream: TextIO) -> None:
    """Send what is still buffered, and all that follows, to the null device: else Python's exit would fail."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)


def guard_streams() -> FaultTolerantStream:
    """Replace this process's standard output and error by streams that do not fail; returns the former."""
    sys.stderr = FaultTolerantStream(sys.stderr)  # type: ignore[assignment]
    sys.stdout = output = FaultTolerantStream(sys.stdout)  # type: ignore[assignment]
    return output
