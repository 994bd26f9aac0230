"""What the client says while it uploads: its lines as they are, its bars as those of every other command.

The client redraws its bars many times a second, also where nobody looks at a terminal, and begins with an end at 00:00.
"""

from __future__ import annotations

import re
import sys
import threading
from typing import TextIO

from lumbar.io.progress import Progress
from lumbar_publish.kaggle.credentials import hide_secrets

# tqdm with unit="B", unit_scale, unit_divisor=1024: "weights.zip:  45%|████▌     | 2.25M/5.00M [00:03<00:04, 700kB/s]"
_BAR = re.compile(r"\d+%\|.*\| *([\d.]+)([kMGT]?)B?/([\d.]+)([kMGT]?)")
_KILOBYTES = {"": 1 / 1024, "k": 1.0, "M": 1024.0, "G": 1024.0**2, "T": 1024.0**3}
_FILE = re.compile(r"Starting upload for file (.+)")
_ENDS = re.compile(r"[\r\n]+")


class UploadProgress:
    """Takes the client's two streams as they come, from a thread each, and writes what is worth reading.

    Args:
        stream: where to; None for standard error.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._lock = threading.Lock()
        self._rest: dict[str, str] = {}  # the last line of each stream, which may go on
        self._file = "upload"
        self._bar: Progress | None = None

    def feed(self, name: str, text: str) -> None:
        """Take more text of a stream."""
        with self._lock:
            *lines, self._rest[name] = _ENDS.split(self._rest.get(name, "") + text)
            for line in lines:
                self._take(line)

    def close(self) -> None:
        """Write what is left once both streams have ended."""
        with self._lock:
            for line in self._rest.values():
                self._take(line)
            self._rest.clear()
            self._end_bar()

    def _take(self, line: str) -> None:
        if match := _BAR.search(line):
            self._show(_kilobytes(match[1], match[2]), _kilobytes(match[3], match[4]))
        elif line.strip():
            self._end_bar()
            if file := _FILE.search(line):
                self._file = f"upload of {file[1].strip()}"
            print(hide_secrets(line), file=self._stream, flush=True)

    def _show(self, n_done: int, total: int) -> None:
        if self._bar is None or self._bar.total != total or n_done < self._bar.n_done:
            self._end_bar()
            self._bar = Progress(
                total, "kilobyte", title=hide_secrets(self._file), n_before=n_done, is_part=True, stream=self._stream
            )
            self._bar.__enter__()
        self._bar.update(n_done)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None


def _kilobytes(number: str, unit: str) -> int:
    return round(float(number) * _KILOBYTES[unit])
