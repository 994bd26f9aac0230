"""Output of the ``kaggle`` command: its message, the hint below it, and the kind of failure that it reports."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from functools import cached_property

from lumbar.errors import LumbarError
from lumbar_publish.kaggle.credentials import Credentials

_MOST_CHARACTERS = 300  # of Kaggle's words in one line


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
    """The client failed, or did not show that it succeeded.

    The message says in one line what to do next; ``hint`` holds what the client itself advises, in its own lines.
    """

    def __init__(self, message: str, trouble: Trouble = Trouble.OTHER, hint: str = "") -> None:
        super().__init__(message)
        self.trouble = trouble
        self.hint = hint


@dataclass(frozen=True)
class Reply:
    """Output of one call of the client; secrets are hidden.

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

    @cached_property
    def said(self) -> tuple[str, str]:
        """Kaggle's own words in one line, and the hint that the client adds (empty without one)."""
        return split_message(self.err, self.out)

    @property
    def message(self) -> str:
        """Kaggle's own words."""
        return self.said[0]

    @property
    def hint(self) -> str:
        """The client's advice, one or more lines."""
        return self.said[1]

    @property
    def _competition(self) -> str:
        """``/NAME`` of a ``kaggle competitions COMMAND NAME …``; empty where it names none."""
        name = re.match(r"kaggle competitions \w+ ([a-z][a-z0-9-]*)", self.command)
        return f"/{name[1]}" if name else ""

    @property
    def trouble(self) -> Trouble:
        """The kind of failure: the status of a refused call decides, words only where there is none."""
        if not self.in_time:
            return trouble_of(self.text)  # what it tried again and again stands before the end
        refused = self.returncode != 0 and (self.status or 0) >= 400
        return trouble_of_status(self.status or 0) if refused else trouble_of(self.message)

    def error(self, hint: str = "") -> KaggleError:
        """The exception for this reply.

        Args:
            hint: what to do about it; default: what helps against this kind of failure.
        """
        trouble = self.trouble
        if trouble is Trouble.CREDENTIALS:
            return KaggleError(Credentials.locate().advice(), trouble)
        advice = hint or _ADVICE.get(trouble, "")
        rules = f"accept the rules on kaggle.com/competitions{self._competition}/rules"
        if self.command.startswith("kaggle competitions ") and trouble is Trouble.FORBIDDEN:
            advice = f"{rules}, then run this again"
        elif self.command.startswith("kaggle competitions submit ") and self.status == 400:  # said for both
            advice = f"{rules}, or submit tomorrow if today's submissions are used up"
        if trouble is Trouble.UNREACHABLE:
            return KaggleError(f"Kaggle cannot be reached ({self.command}): {advice}", trouble)
        message = f"{self.command}: {self.message.rstrip('.')}: {advice}".rstrip(": ")
        return KaggleError(message, trouble, self.hint)


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

# Lines that are no message: the progress bar, warnings, announcements of a further try.
_NOISE = re.compile(r"%\||^\s*(Warning|warnings\.|⚠)|^Request failed: .* Will retry in ")


def trouble_of_status(status: int) -> Trouble:
    """The kind of failure that an HTTP status stands for."""
    return _OF_STATUS.get(status, Trouble.SERVER if status >= 500 else Trouble.OTHER)


def trouble_of(text: str) -> Trouble:
    """The kind of failure, recognised by the client's words."""
    return next((kind for kind, sign in _SIGNS if re.search(sign, text)), Trouble.OTHER)


def split_message(err: str, out: str) -> tuple[str, str]:
    """Kaggle's own words in one line, and the client's hint, from the two streams of a call.

    Errors stand in ``err``: the words of the server or of the client first, then, since 2.2.5, a blank line and advice
    ("To search for one, try …"), which is not what happened. Without any, the last line of ``out`` counts.
    """
    paragraphs = _paragraphs(err)
    if paragraphs and paragraphs[0][0].startswith("Traceback (most recent call last)"):
        return paragraphs[-1][-1].strip()[:_MOST_CHARACTERS], ""
    if paragraphs:
        words = " ".join(line.strip() for line in paragraphs[0])
        hint = "\n".join(line for paragraph in paragraphs[1:] for line in paragraph)
        return words[:_MOST_CHARACTERS], hint
    # print_auth_help writes a page to standard output, whose first line says what happened
    lines = [line.strip() for paragraph in _paragraphs(out) for line in paragraph]
    if lines and lines[0].startswith("Authentication required"):
        return lines[0], ""
    return (lines[-1][:_MOST_CHARACTERS] if lines else "nothing"), ""


def _paragraphs(text: str) -> list[list[str]]:
    """Lines of a stream between its blank lines, without noise."""
    paragraphs: list[list[str]] = [[]]
    for line in text.splitlines():
        if not line.strip():
            paragraphs.append([])
        elif not _NOISE.search(line):
            paragraphs[-1].append(line.rstrip())
    return [paragraph for paragraph in paragraphs if paragraph]
