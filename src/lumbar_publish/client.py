"""The real ``kaggle`` command, with a time limit, and with its words read: its exit code is not believed."""

from __future__ import annotations

import contextlib
import enum
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from lumbar.errors import LumbarError
from lumbar_publish.credentials import Credentials, hide_secrets
from lumbar_publish.kaggle_process import last_status
from lumbar_publish.names import COMPETITION

SHORT_S = 180.0  # a question; the client's own retries on a dead network take 150, its start on a busy machine a minute
LONG_S = 6 * 3600.0  # an upload
_READ_TRIES = 3
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
_PATIENCE_FAILURES = 10  # failed looks in a row while waiting, once one has worked

_PROCESS = Path(__file__).with_name("kaggle_process.py")

T = TypeVar("T")


class Trouble(enum.Enum):
    """Kinds of failure, as far as the client's words tell them apart."""

    CREDENTIALS = "credentials"
    LIMITED = "rate limit"
    SERVER = "server error"
    UNREACHABLE = "unreachable"
    FORBIDDEN = "forbidden"
    MISSING = "not found"
    OTHER = "failure"

    @property
    def may_pass(self) -> bool:
        """Whether trying again can help."""
        return self in (Trouble.LIMITED, Trouble.SERVER, Trouble.UNREACHABLE)

    @property
    def is_no_answer(self) -> bool:
        """Whether it leaves open what Kaggle has; other refusals say that it has nothing (for us)."""
        return self.may_pass or self is Trouble.CREDENTIALS


class KaggleError(LumbarError):
    """The client failed, or did not show that it succeeded. The message says what to do next."""

    def __init__(self, message: str, trouble: Trouble = Trouble.OTHER) -> None:
        super().__init__(message)
        self.trouble = trouble


@dataclass(frozen=True)
class Reply:
    """What the client said; secrets are hidden.

    ``status`` is the HTTP status of the last answer that it got, None without any; ``in_time`` is False for a client
    that had to be ended.
    """

    command: str
    returncode: int
    out: str
    err: str
    status: int | None = None
    in_time: bool = True

    @property
    def text(self) -> str:
        """Both streams."""
        return f"{self.out}\n{self.err}"

    @property
    def last_line(self) -> str:
        """The last line that says something."""
        lines = [line.strip() for stream in (self.err, self.out) for line in reversed(stream.splitlines())]
        said = [line for line in lines if line and "%|" not in line and not line.startswith(("Warning", "warnings."))]
        return said[0][:300] if said else "nothing"

    @property
    def trouble(self) -> Trouble:
        """The kind of failure: the status of a refused call decides, words only where there is none."""
        refused = self.returncode != 0 and self.in_time and (self.status or 0) >= 400
        return trouble_of_status(self.status or 0) if refused else trouble_of(self.text)

    def error(self, hint: str = "") -> KaggleError:
        """The failure that this tells of."""
        trouble = self.trouble
        advice = hint or _ADVICE.get(trouble, "")
        if trouble is Trouble.FORBIDDEN and self.command.startswith("kaggle competitions "):
            advice = f"accept the rules on kaggle.com/competitions/{COMPETITION}/rules, then run this again"
        if trouble is Trouble.CREDENTIALS:
            return KaggleError(Credentials.found().advice(), trouble)
        if trouble is Trouble.UNREACHABLE:
            return KaggleError(f"Kaggle cannot be reached ({self.command}): {advice}", trouble)
        return KaggleError(f"{self.command}: {self.last_line.rstrip('.')}: {advice}".rstrip(": "), trouble)


_ADVICE = {
    Trouble.LIMITED: "too many requests, wait some minutes, then run this again",
    Trouble.SERVER: "Kaggle's own error, run this again later",
    Trouble.UNREACHABLE: "check the network, then run this again",
    Trouble.FORBIDDEN: "not allowed: check that the owner is your account, or wait until Kaggle has processed it",
    Trouble.MISSING: "not there: check owner and name",
    Trouble.OTHER: "see the line above, then run this again",
}
# In this order: the words of one kind may hold those of the next.
_SIGNS = (
    (Trouble.CREDENTIALS, r"Authentication required|Unauthori[sz]ed|\b401\b|Unauthenticated|Invalid credentials"),
    (Trouble.LIMITED, r"\b429\b|Too Many Requests|rate.?limit"),
    (
        Trouble.UNREACHABLE,
        r"Max retries exceeded|ConnectionError|NewConnectionError|Connection refused|RemoteDisconnected|ProxyError"
        r"|Name or service not known|timed out|no answer within|Connection aborted|Connection reset",
    ),
    (Trouble.SERVER, r"\b50[0234]\b|Internal (Server )?Error|Bad Gateway|Service Unavailable"),
    (Trouble.FORBIDDEN, r"\b403\b|Forbidden|[Pp]ermission .*denied"),
    (Trouble.MISSING, r"\b404\b|[Nn]ot [Ff]ound|does not exist"),
)


_OF_STATUS = {401: Trouble.CREDENTIALS, 403: Trouble.FORBIDDEN, 404: Trouble.MISSING, 429: Trouble.LIMITED}


def trouble_of_status(status: int) -> Trouble:
    """The kind of failure that an HTTP status stands for."""
    return _OF_STATUS.get(status, Trouble.SERVER if status >= 500 else Trouble.OTHER)


def trouble_of(text: str) -> Trouble:
    """The kind of failure that the client's words tell of."""
    return next((kind for kind, sign in _SIGNS if re.search(sign, text)), Trouble.OTHER)


class Client:
    """Calls of the ``kaggle`` command; ``log`` receives two lines for each call that changes something.

    Every call gets a temporary folder of its own. The client notes interrupted uploads in the system's, recognises
    them by name, size and time alone, and would go on with old bytes after the content has changed.
    """

    def __init__(self, log: Callable[[str], None] = print) -> None:
        self.log = log

    def ask(self, *arguments: str, limit_s: float | None = None) -> Reply:
        """A question that changes nothing: tried again when that can help.

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

    def act(self, *arguments: str, limit_s: float = SHORT_S, progress: bool = False, check: bool = True) -> Reply:
        """A call that changes something: made once. Exit 0 proves nothing yet, but anything else is a failure.

        Raises:
            KaggleError: it failed (left to the caller unless ``check``).
        """
        reply = self._run(arguments, limit_s, progress=progress)
        self.log(f"$ {reply.command}\n  {reply.last_line}")
        if check and reply.returncode:
            raise reply.error()
        return reply

    def _run(self, arguments: tuple[str, ...], limit_s: float, *, progress: bool = False) -> Reply:
        with tempfile.TemporaryDirectory(prefix="lumbar-kaggle-") as scratch:
            statuses = Path(scratch) / "http-statuses"
            code, out, err = _call(arguments, limit_s, statuses, progress)
            status = last_status(statuses)
        in_time = code is not None
        if not in_time:
            err += f"\nno answer within {limit_s:.0f} s"
        command = hide_secrets("kaggle " + " ".join(arguments))
        return Reply(command, 1 if code is None else code, hide_secrets(out), hide_secrets(err), status, in_time)


def _call(arguments: tuple[str, ...], limit_s: float, statuses: Path, progress: bool) -> tuple[int | None, str, str]:
    """Exit code (None: ended for taking too long) and both streams; ``statuses`` lies in the client's own folder."""
    # VERBOSE would make the client print its Authorization header.
    environment = {k: v for k, v in os.environ.items() if k not in ("VERBOSE", "VERBOSE_OUTPUT")}
    environment |= {"TMPDIR": str(statuses.parent), "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        [sys.executable, "-P", str(_PROCESS), str(os.getpid()), str(statuses), "-W", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    streams: list[list[str]] = [[], []]
    readers = [
        threading.Thread(target=_collect, args=(process.stdout, streams[0], False), daemon=True),
        threading.Thread(target=_collect, args=(process.stderr, streams[1], progress), daemon=True),
    ]
    for reader in readers:
        reader.start()
    code = _wait(process, limit_s)
    for reader in readers:
        reader.join(timeout=5)
    return code, "".join(streams[0]), "".join(streams[1])


def _collect(stream: IO[bytes], into: list[str], show: bool) -> None:
    """Read a stream as it comes; the client's progress bar (written with carriage returns) is passed on."""
    with stream:
        while chunk := os.read(stream.fileno(), 4096):
            text = chunk.decode(errors="replace")
            into.append(text)
            if show:
                sys.stderr.write(hide_secrets(text))
                sys.stderr.flush()


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

    Passing failures are borne while something has worked before; the run at Kaggle does not end with a bad minute.

    Raises:
        KaggleError: the time is over, or a failure that will not pass.
    """
    start_s, pause_s, failures, has_worked = time.monotonic(), _FIRST_PAUSE_S, 0, False
    while True:
        try:
            found = look()
            failures, has_worked = 0, True
        except KaggleError as error:
            failures += 1
            if not error.trouble.may_pass or not has_worked or failures > _PATIENCE_FAILURES:
                raise
            log(f"  {error}; still waiting")
            found = None
        if found is not None:
            return found
        if time.monotonic() - start_s + pause_s > limit_s:
            raise KaggleError(f"{what} took more than {limit_s / 3600:.2g} hours: run this again to go on waiting")
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
