"""``python -m kaggle``, unchanged, with three things around it that its parent process needs.

The client prints the words of a refusal without its HTTP status, and words are no contract: the status of every answer
is noted in a file. It ends with its parent: an upload that went on alone would make a version that nobody awaits. And
it answers one question that no command of the client does (``SUBMISSION_ERROR``).
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import runpy
import signal
import sys
from pathlib import Path

# `SUBMISSION_ERROR <competition> <ref>`, in place of a command: why a submission failed, as the list of submissions
# says it. The table of `kaggle competitions submissions` leaves that out.
SUBMISSION_ERROR = "submission-error"

_STATUS = re.compile(r'" (\d{3}) \S+$')  # the end of urllib3's line: "POST /… HTTP/1.1" 404 None
_PR_SET_PDEATHSIG = 1


class _StatusNotes(logging.Handler):
    """Append each answer's status, and nothing else: addresses may be signed."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.DEBUG)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        match = _STATUS.search(record.getMessage())
        if match:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(match[1] + "\n")


def last_status(path: Path) -> int | None:
    """Status of the last answer; None when there was none."""
    lines = path.read_text(encoding="utf-8").split() if path.is_file() else []
    return int(lines[-1]) if lines else None


def _end_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that call
        os._exit(1)


def _submission_error(competition: str, ref: str) -> str:
    """``error_description`` of one of the newest submissions; empty where Kaggle says none."""
    from kaggle import KaggleApi

    api = KaggleApi()
    api.authenticate()
    rows = api.competition_submissions(competition, page_size=100) or []
    return next((str(row.error_description or "") for row in rows if row and str(row.ref) == ref), "")


def main(argv: list[str]) -> None:
    """Run the client.

    Args:
        argv: the parent's process id, the file of statuses, then the client's own arguments.
    """
    _end_with_parent(int(argv[0]))
    connections = logging.getLogger("urllib3.connectionpool")
    connections.setLevel(logging.DEBUG)
    connections.propagate = False
    connections.addHandler(_StatusNotes(Path(argv[1])))
    sys.argv[1:] = argv[2:]
    if SUBMISSION_ERROR in argv[2:4]:
        print(_submission_error(*argv[-2:]))
        return
    runpy.run_module("kaggle", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
