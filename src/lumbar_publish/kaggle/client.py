"""The real ``kaggle`` command, with a time limit; its output is read, since its exit code is not reliable."""

from __future__ import annotations

import codecs
import contextlib
import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

from lumbar_publish.kaggle.credentials import hide_secrets
from lumbar_publish.kaggle.kaggle_process import last_status
from lumbar_publish.kaggle.reply import KaggleError, Reply, Trouble
from lumbar_publish.kaggle.upload_progress import UploadProgress

__all__ = ["LONG_S", "SHORT_S", "Client", "KaggleError", "Reply", "Trouble", "require_client", "wait_for"]

SHORT_S = 180.0  # a question; the client's own retries on a dead network take 150, its start on a busy machine a minute
LONG_S = 6 * 3600.0  # an upload
_READ_TRIES = 3
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
_PATIENCE_FAILURES = 10  # failed looks in a row while waiting, once one has worked

_PROCESS = Path(__file__).with_name("kaggle_process.py")

# Older ones ask for version N of a notebook as "slug/N", which Kaggle refuses (403), report the newest version's status
# under an older one's name, and create a dataset version without the files whose upload failed.
OLDEST_CLIENT = (2, 2, 5)

T = TypeVar("T")


def require_client() -> None:
    """Refuse a client that is too old.

    Raises:
        KaggleError: no client, or an old one; names the command that installs a newer one.
    """
    try:
        version = importlib.metadata.version("kaggle")
    except importlib.metadata.PackageNotFoundError:
        version = "none"
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if numbers < OLDEST_CLIENT:
        oldest = ".".join(map(str, OLDEST_CLIENT))
        raise KaggleError(
            f"kaggle client: found {version}, expected {oldest} or newer: run "
            f"{sys.executable} -m pip install -U 'kaggle>={oldest}' six, then run this again"
        )


class Client:
    """Calls of the ``kaggle`` command; ``log`` receives two lines for each call that changes something.

    Every call gets a temporary folder of its own, unless it is told to keep one. The client notes interrupted uploads
    in the system's, recognises them by name, size and time alone, and would go on with old bytes after the content has
    changed.
    """

    def __init__(self, log: Callable[[str], None] = print) -> None:
        self.log = log

    def ask(self, *arguments: str, limit_s: float | None = None) -> Reply:
        """Run a command that changes nothing; it is repeated where that can help.

        Raises:
            KaggleError: no answer.
        """
        for attempt in range(_READ_TRIES):
            reply = self._run(arguments, limit_s or SHORT_S)
            if reply.returncode == 0:
                return reply
            error = reply.error()
            if not error.trouble.may_pass or not reply.in_time or attempt == _READ_TRIES - 1:
                raise error
            time.sleep(_FIRST_PAUSE_S * 2**attempt)
        raise AssertionError("unreachable")

    def act(
        self,
        *arguments: str,
        limit_s: float = SHORT_S,
        progress: bool = False,
        check: bool = True,
        folder: Path | None = None,
        scratch: Path | None = None,
    ) -> Reply:
        """Run a command that changes something, once. Exit code 0 proves nothing; any other is a failure.

        Args:
            arguments: the command.
            limit_s: seconds after which the client is ended.
            progress: show on standard error what the client says, as it says it.
            check: raise on an exit code that is not 0.
            folder: working directory; default: this process's.
            scratch: the client's temporary folder, kept; default: one of this call's own, removed.

        Raises:
            KaggleError: it failed (left to the caller unless ``check``).
        """
        reply = self._run(arguments, limit_s, progress=progress, folder=folder, scratch=scratch)
        self.log(f"$ {reply.command}\n  {reply.message}")
        if check and reply.returncode:
            raise reply.error()
        return reply

    def _run(
        self,
        arguments: tuple[str, ...],
        limit_s: float,
        *,
        progress: bool = False,
        folder: Path | None = None,
        scratch: Path | None = None,
    ) -> Reply:
        with tempfile.TemporaryDirectory(prefix="lumbar-kaggle-") as own:
            statuses = Path(own) / "http-statuses"
            code, out, err = _call(arguments, limit_s, statuses, scratch or Path(own), folder, progress)
            status = last_status(statuses)
        in_time = code is not None
        if not in_time:
            err += f"\nno answer within {limit_s:.0f} s"
        command = hide_secrets("kaggle " + " ".join(arguments))
        return Reply(command, 1 if code is None else code, hide_secrets(out), hide_secrets(err), status, in_time)


def _call(
    arguments: tuple[str, ...], limit_s: float, statuses: Path, scratch: Path, folder: Path | None, progress: bool
) -> tuple[int | None, str, str]:
    """Exit code (None: ended for taking too long) and both streams."""
    # VERBOSE would make the client print its Authorization header.
    environment = {k: v for k, v in os.environ.items() if k not in ("VERBOSE", "VERBOSE_OUTPUT")}
    environment |= {"TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        [sys.executable, "-P", str(_PROCESS), str(os.getpid()), str(statuses), "-W", *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    streams: list[list[str]] = [[], []]
    shown = UploadProgress() if progress else None
    readers = [
        threading.Thread(target=_collect, args=(stream, into, name, shown), daemon=True)
        for stream, into, name in zip((process.stdout, process.stderr), streams, ("out", "err"), strict=True)
    ]
    for reader in readers:
        reader.start()
    try:
        code = _wait(process, limit_s)
    finally:
        for reader in readers:
            reader.join(timeout=5)
        if shown is not None:
            shown.close()
    return code, "".join(streams[0]), "".join(streams[1])


def _collect(stream: IO[bytes], into: list[str], name: str, shown: UploadProgress | None) -> None:
    """Read a stream as it comes; what the client shows while it uploads is passed on."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a bar's blocks have three bytes each
    with stream:
        while chunk := os.read(stream.fileno(), 4096):
            text = decoder.decode(chunk)
            into.append(text)
            if shown is not None:
                shown.feed(name, text)


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> int | None:
    """The exit code, or None for a process that had to be ended, with all that it started."""
    try:
        return process.wait(timeout=limit_s)
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            return None
        raise


def wait_for(look: Callable[[], T | None], what: str, limit_s: float, log: Callable[[str], None] = print) -> T:
    """Look again and again, less and less often, until ``look`` returns something.

    Temporary failures are tolerated once a look has worked: the run at Kaggle goes on during a short outage.

    Raises:
        KaggleError: the time is over, or a failure that will not pass.
    """
    start_s, pause_s, failures, has_worked = time.monotonic(), _FIRST_PAUSE_S, 0, False
    while True:
        try:
            answer = look()
            failures, has_worked = 0, True
        except KaggleError as error:
            failures += 1
            if not error.trouble.may_pass or not has_worked or failures > _PATIENCE_FAILURES:
                raise
            log(f"  {error}; still waiting")
            answer = None
        if answer is not None:
            return answer
        if time.monotonic() - start_s + pause_s > limit_s:
            raise KaggleError(f"{what} took more than {limit_s / 3600:.2g} hours: run this again to go on waiting")
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
