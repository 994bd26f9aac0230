"""A notebook on Kaggle and its runs: pushed, asked for their status, waited for, and fetched with their log."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lumbar_publish.kaggle.client import Client, KaggleError, wait_for
from lumbar_publish.kaggle.publication import AGAIN
from lumbar_publish.kaggle.remote_dataset import parse_json
from lumbar_publish.kaggle.remote_kernel import pushed_version
from lumbar_publish.sealing.seal import read_json

MAX_NOTEBOOK_BYTES = 1_000_000  # the server refuses larger ones
RUN_LIMIT_S = 12 * 3600.0  # queue and run
_PUSH_LIMIT_S, _FETCH_LIMIT_S = 600.0, 1800.0
_RUNNING = ("QUEUED", "RUNNING", "NEW_SCRIPT")


@dataclass(frozen=True)
class NotebookRun:
    """One notebook.

    Attributes:
        client: to ask.
        kernel: its ``owner/slug``.
        file: the notebook here.
        metadata: its ``kernel-metadata.json``.
        output: folder that what a run left is fetched into.
        remake: what makes file and metadata anew, for messages.
        log: receives every line.
        limit_s: seconds to wait for a run, its queue included.
    """

    client: Client
    kernel: str
    file: Path
    metadata: Path
    output: Path
    remake: str
    log: Callable[[str], None] = print
    limit_s: float = RUN_LIMIT_S

    def accepted(self, after: int) -> int | None:
        """Number of Kaggle's newest version, where it is newer than ``after`` and this very notebook."""
        return pushed_version(self.client, self.kernel, self.file, self.metadata, after)

    def push(self, limit_s: float, *options: str) -> int:
        """Push; the version number that Kaggle gave.

        Args:
            limit_s: seconds after which Kaggle ends the run.
            options: further ones of ``kaggle kernels push``.

        Raises:
            KaggleError: it was refused, or a source is not attached.
        """
        size = self.file.stat().st_size
        if size >= MAX_NOTEBOOK_BYTES:
            raise KaggleError(f"{self.file}: {size} bytes, expected less than 1 MB: {self.remake} to make it anew")
        metadata = read_json(self.metadata)
        slug, title = str(metadata.get("id", "")).rpartition("/")[2], str(metadata.get("title", ""))
        if as_slug(title) != slug:
            raise KaggleError(
                f"{self.metadata}: the title {title!r} leads to the name {as_slug(title)!r}, the id says {slug!r}: "
                f"{self.remake} to make them agree"
            )
        folder, seconds = str(self.metadata.parent), str(round(limit_s))
        reply = self.client.act("kernels", "push", "-p", folder, "-t", seconds, *options, limit_s=_PUSH_LIMIT_S)
        invalid = re.search(r"not valid (dataset|competition|kernel|model) sources.*?: (.*)", reply.text, re.DOTALL)
        if invalid:
            names = invalid[2].splitlines()[0]
            rules = ", accept its rules on kaggle.com" if invalid[1] == "competition" else ""
            raise KaggleError(f"{invalid[1]} sources {names} are not valid{rules}: mend {self.metadata}, {AGAIN}")
        pushed = re.search(r"Kernel version (\d+) successfully (?:pushed|saved)", reply.text)
        if pushed is None:
            raise reply.error(f"the notebook was not pushed: mend that, {AGAIN}")
        return int(pushed[1])

    def status(self, version: int) -> tuple[str, str]:
        """Status of a version's run, in capitals, and Kaggle's reason for a failure (empty without one).

        Raises:
            KaggleError: no answer.
        """
        reply = self.client.ask("kernels", "status", f"{self.kernel}/{version}")
        status = re.search(r'has status "(?:KernelWorkerStatus\.)?(\w+)"', reply.out)
        if status is None:
            raise reply.error(f"no status of {self.kernel} version {version}: {AGAIN}")
        reason = re.search(r'^Failure message: "(.*)"$', reply.out, re.MULTILINE | re.DOTALL)
        return status[1].upper(), " ".join(reason[1].split()) if reason else ""

    def ending(self, version: int) -> tuple[str, str] | None:
        """Status and reason of a run that has ended; None while it waits or runs."""
        status = self.status(version)
        return None if status[0] in _RUNNING else status

    def wait(self, version: int) -> tuple[str, str]:
        """Status and reason of a run, once it has ended.

        Raises:
            KaggleError: it takes too long, or no answer.
        """
        what = f"the run of notebook {self.kernel} version {version}"
        return wait_for(lambda: self.ending(version), what, self.limit_s, self.log)

    def fetch(
        self, version: int, *options: str, into: Path | None = None, anew: bool = True, limit_s: float = _FETCH_LIMIT_S
    ) -> None:
        """Download output and log of a version.

        Args:
            version: its number.
            options: further ones of ``kaggle kernels output``.
            into: a folder; default: ``output``.
            anew: what the folder holds does not stay; else files that are there already are not sent again.
            limit_s: seconds that it may take.

        Raises:
            KaggleError: no answer.
        """
        folder = into or self.output
        if anew:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        force = ("-o",) if anew else ()
        self.client.ask(
            "kernels", "output", f"{self.kernel}/{version}", "-p", str(folder), *force, "--page-size", "200", *options,
            limit_s=limit_s,
        )  # fmt: skip

    def log_tail(self, folder: Path | None = None) -> str:
        """The last line of a fetched run's log, which Kaggle keeps as JSON events."""
        path = (folder or self.output) / f"{self.kernel.rpartition('/')[2]}.log"
        if not path.is_file():
            return "no log"
        text = path.read_text(encoding="utf-8", errors="replace")
        events = parse_json(text)
        if isinstance(events, list):
            text = "".join(str(event.get("data", "")) for event in events if isinstance(event, dict))
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1][:300] if lines else "empty log"


def as_slug(title: str) -> str:
    """The name that Kaggle makes of a title."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
