"""``python -m kaggle`` with four things around it that its parent process needs.

The client prints the words of a refusal without its HTTP status, and words are no contract: the status of every answer
is noted in a file. It ends with its parent: an upload that went on alone would make a version that nobody awaits. It
answers two questions that no command of the client does (``SUBMISSION_ERROR``, ``MODEL_FILE``). And a push says which
models Kaggle would not attach, as it says of datasets: the client has that in its hands and keeps it to itself.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# `SUBMISSION_ERROR <competition> <ref>`, in place of a command: why a submission failed, as the list of submissions
# says it. The table of `kaggle competitions submissions` leaves that out.
SUBMISSION_ERROR = "submission-error"
# `MODEL_FILE <owner/model/framework/variation/version> <file> <target>`: one file of a model, where the command
# `kaggle models variations versions download` always fetches all of them.
MODEL_FILE = "model-file"

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


def _api() -> Any:
    from kaggle import KaggleApi

    api = KaggleApi()
    api.authenticate()
    return api


def _submission_error(competition: str, ref: str) -> str:
    """``error_description`` of one of the newest submissions; empty where Kaggle says none."""
    api = _api()
    rows = api.competition_submissions(competition, page_size=100) or []
    return next((str(row.error_description or "") for row in rows if row and str(row.ref) == ref), "")


def _model_file(version: str, file: str, target: str) -> str:
    """Download one file, as ``kagglehub.model_download(handle, path=file)`` does."""
    from kaggle.api.kaggle_api_extended import ApiDownloadModelInstanceVersionRequest, ModelFramework

    api = _api()
    request = ApiDownloadModelInstanceVersionRequest()
    request.owner_slug, request.model_slug, framework, request.instance_slug, number = version.split("/")
    request.framework = api.lookup_enum(ModelFramework, ModelFramework.MODEL_FRAMEWORK_API, framework)
    request.version_number, request.path = int(number), file
    with api.build_kaggle_client() as kaggle:
        response = kaggle.models.model_api_client.download_model_instance_version(request)
        api.download_file(response, target, kaggle.http_client(), True)
    return target


def _say_invalid_models() -> None:
    """Let ``kernels push`` print the model sources that Kaggle refused (``invalidModelSources`` of its reply)."""
    from kaggle import KaggleApi

    push = KaggleApi.kernels_push

    def push_and_say(*arguments: Any, **options: Any) -> Any:
        reply = push(*arguments, **options)
        if refused := list(getattr(reply, "invalid_model_sources", None) or []):
            print(f"The following are not valid model sources and could not be added to the kernel: {refused}")
        return reply

    KaggleApi.kernels_push = push_and_say


_QUESTIONS: dict[str, Callable[..., str]] = {SUBMISSION_ERROR: _submission_error, MODEL_FILE: _model_file}


def main(argv: list[str]) -> None:
    """Run the client.

    Args:
        argv: the parent's process id, the file of statuses, then the client's own arguments (``-W`` first).
    """
    _end_with_parent(int(argv[0]))
    connections = logging.getLogger("urllib3.connectionpool")
    connections.setLevel(logging.DEBUG)
    connections.propagate = False
    connections.addHandler(_StatusNotes(Path(argv[1])))
    sys.argv[1:] = argv[2:]
    if argv[3] in _QUESTIONS:
        print(_QUESTIONS[argv[3]](*argv[4:]))
        return
    if argv[3:5] == ["kernels", "push"]:
        _say_invalid_models()
    runpy.run_module("kaggle", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
