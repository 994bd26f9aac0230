"""One session after the other, until the run is whole: push, wait, read the evidence, go on from there.

Kaggle keeps the state: each session has a notebook of its own, whose output is the next one's input. The notes here
only save questions; without them the notebooks that were pushed are recognised by their content.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lumbar.io.text import printable
from lumbar_publish.files import replaced_folder, write_text
from lumbar_publish.kaggle.client import LONG_S, Client, KaggleError
from lumbar_publish.kaggle.notebook_run import NotebookRun
from lumbar_publish.kaggle.publication import AGAIN
from lumbar_publish.kaggle.quota import quota_line
from lumbar_publish.sealing.seal import read_json
from lumbar_publish.training.notebook import Session
from lumbar_publish.training.plan import Places
from lumbar_publish.training.session import EVIDENCE, RUN, STATUS, TAKEN, read_evidence, run_as_it_stood, sha256

WHOLE, TIME_LIMIT = "whole", "time limit"
_GOES_ON = ("failed", "interrupted")  # how a training ends that leaves a run folder to go on from
_OF_FITS = (".pt", ".safetensors", ".parquet")  # checkpoints, weights, out-of-fold outputs
_QUEUE_S = 3600.0  # beside the session's own hours


@dataclass
class Sessions:
    """The sessions of one run.

    Attributes:
        first: session 1, from which the others follow.
        places: where things lie here.
        plan_hash: by which outputs are known.
        client: to ask.
        waits: for a session that runs; else a look is enough.
        log: receives every line.
    """

    first: Session
    places: Places
    plan_hash: str
    client: Client
    waits: bool
    log: Callable[[str], None] = print

    def run(self) -> int | None:
        """Go on as far as possible; the number of the session that left the run whole, None while one is at work.

        Raises:
            KaggleError: a session failed, or left nothing to go on from; says what to do.
        """
        number, before = 1, dict[str, Any]()
        while True:
            evidence = self._evidence(number, before)
            if evidence is None or status_of(evidence) == WHOLE:
                return None if evidence is None else number
            self._require_progress(number, evidence, before)
            number, before = number + 1, evidence

    def write_next(self) -> int:
        """Write the notebook of the first session that is not noted as ended, and push nothing; its number."""
        number = 1
        while self.note(number).get("is_checked"):
            number += 1
        self._notebook(number)
        return number

    def fetch(self, number: int, out: Path) -> None:
        """Bring the run folder that a session left here, every file as its evidence says.

        Raises:
            KaggleError: files did not arrive whole.
        """
        version, folder = int(self.note(number)["version"]), self.places.output(number)
        files: dict[str, list[Any]] = self._read(number)["files"]
        notebook = self._notebook(number)
        megabytes = sum(size for size, _ in files.values()) / 1e6
        self.log(f"{notebook.kernel} version {version}: fetching the run, {len(files)} files, {megabytes:.1f} MB")
        for _ in range(2):
            bad = self._bad_files(folder, files)
            if not bad:
                break
            notebook.fetch(version, "--file-pattern", f"^{RUN}/", into=folder, anew=False, limit_s=LONG_S)
        if bad := self._bad_files(folder, files):
            more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
            raise KaggleError(
                f"{notebook.kernel} version {version}: {', '.join(bad[:3])}{more} did not arrive as the session left "
                f"them: {AGAIN}"
            )
        with replaced_folder(out) as new:
            for name in files:
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(folder / RUN / name, new / name)
            shutil.copyfile(folder / EVIDENCE, new / EVIDENCE)

    def note(self, number: int, **values: Any) -> dict[str, Any]:
        """What is noted of a session, after adding to it."""
        path = self.places.folder / "notes.json"
        notes = read_json(path) if path.is_file() else {}
        mine: dict[str, Any] = notes.setdefault("sessions", {}).setdefault(str(number), {})
        if values:
            mine.update(values)
            write_text(path, json.dumps(notes, indent=1, sort_keys=True) + "\n")
        return mine

    # ---- one session ----------------------------------------------------------------------------------------------

    def _notebook(self, number: int) -> NotebookRun:
        """A session's notebook, written into the folder that is pushed."""
        session = replace(self.first, number=number, after=self._after(number))
        file, metadata = session.write(self.places.kernel)
        limit_s = session.machine.session_hours * 3600 + _QUEUE_S
        return NotebookRun(
            self.client, session.names.kernel(number), file, metadata, self.places.output(number),
            remake="run this again", log=self.log, limit_s=limit_s,
        )  # fmt: skip

    def _after(self, number: int) -> int | None:
        """The last session before one that ended in order; None where that is the one before, as it should be."""
        last = number - 1
        while last >= 1 and self.note(last).get("is_cut"):
            last -= 1
        return last if last < number - 1 else None

    def _evidence(self, number: int, before: dict[str, Any]) -> dict[str, Any] | None:
        """What a session left; it is pushed where it was not yet. None while it is at work."""
        note = self.note(number)
        if note.get("is_checked") and (said := self._read(number)):
            self.log(f"session {number}: {describe(said)}")
            return said
        notebook = self._notebook(number)
        version = note.get("version") or self._push(number, notebook)
        what = f"session {number} (notebook {notebook.kernel} version {version})"
        ending = notebook.wait(int(version)) if self.waits else notebook.ending(int(version))
        if ending is None:
            self.log(f"{what}: at work on Kaggle; run this again to go on (--wait waits for it)")
            return None
        said = self._judge(number, notebook, int(version), *ending, before)
        self.log(f"session {number}: {describe(said)}")
        return said

    def _push(self, number: int, notebook: NotebookRun) -> int:
        version = notebook.accepted(int(self.note(number).get("failed_version") or 0))
        if version is None:
            hours = self.first.machine.session_hours
            self.log(quota_line(self.client, self.first.machine, self.first.hours))
            version = notebook.push(hours * 3600)
            self.log(f"session {number}: notebook {notebook.kernel} version {version} is pushed")
        else:
            what = f"notebook {notebook.kernel} version {version}"
            self.log(f"session {number}: {what} is this very one: not pushed again")
        self.note(number, version=version, hours=self.first.hours, is_checked=False)
        return version

    def _judge(
        self, number: int, notebook: NotebookRun, version: int, ending: str, reason: str, before: dict[str, Any]
    ) -> dict[str, Any]:
        """The evidence of a session that has ended, where the next one can go on from it.

        Raises:
            KaggleError: it ended in disorder. What it finished counts where its output can be gone on from.
        """
        what = f"session {number} (notebook {notebook.kernel} version {version})"
        if ending != "COMPLETE":
            return self._salvage(number, notebook, version, f"{what}: ended with {ending}", reason, before)
        folder = self.places.output(number)
        notebook.fetch(version, "--file-pattern", f"^{EVIDENCE}$", into=folder)
        said = read_evidence(folder / EVIDENCE)
        if problem := self._problem(said, number, before):
            self.note(number, version=None, failed_version=version)
            raise KaggleError(f"{what}: {problem}: {stands(number)}; run this again to begin session {number} anew")
        self.note(number, is_checked=True)
        if line := lost_line(number, said.get("from", number - 1)):
            self.log(line)
        if status_of(said) in _GOES_ON:
            last = said.get("last_line") or "no reason given"
            again = f"mend that, {AGAIN}: it goes on from there"
            raise KaggleError(f"{what}: training {status_of(said)}: {last}: {again}")
        return said

    def _salvage(
        self, number: int, notebook: NotebookRun, version: int, what: str, reason: str, before: dict[str, Any]
    ) -> dict[str, Any]:
        """A session that Kaggle ended: the next one goes on from its output, where that was kept and holds the run.

        Returns:
            Its evidence, where it had come to its end before Kaggle ended it.

        Raises:
            KaggleError: it had not; says what is kept and what is lost.
        """
        folder = self.places.output(number)
        with contextlib.suppress(KaggleError):  # what it left may be nothing
            notebook.fetch(version, "--file-pattern", f"^({EVIDENCE}|{RUN}/({STATUS}|{TAKEN}))$", into=folder)
        what = "; ".join(filter(None, (what, reason, notebook.log_tail(folder))))
        said = read_evidence(folder / EVIDENCE)
        if said and not said.get("ended", True):
            run = run_as_it_stood(folder / RUN)
            said |= {"run": run | {"status": "interrupted"} if run else None, "seconds": run.get("session_s")}
        problem = self._problem(said, number, before)
        if problem:
            self.note(number, version=None, failed_version=version)
            raise KaggleError(
                f"{what}: it left nothing to go on from ({problem}), so what it trained is lost: {stands(number)}; "
                f"run this again to begin session {number} anew"
            )
        write_text(folder / EVIDENCE, json.dumps(said, indent=1, sort_keys=True) + "\n")
        self.note(number, is_checked=True, is_cut=True)
        if status_of(said) not in _GOES_ON:
            self.log(f"{what}: it had come to its end, and its output was kept")
            return said
        raise KaggleError(
            f"{what}: its output was kept and holds the run, {describe(said)}: {AGAIN}: session {number + 1} goes on "
            "from there"
        )

    def _problem(self, said: dict[str, Any], number: int, before: dict[str, Any]) -> str:
        """Why the next session cannot go on from an output; empty where it can."""
        if not said:
            return f"found no {EVIDENCE}, expected one"
        for key, expected in (("plan", self.plan_hash), ("session", number), ("cohort", before.get("cohort"))):
            if expected is not None and said.get(key) != expected:
                return f"{EVIDENCE}: found {key} {str(said.get(key))[:12]}, expected {str(expected)[:12]}"
        if not said.get("ended", True):
            return "" if isinstance(said.get("run"), dict) else f"found no whole run folder, expected {RUN}/{STATUS}"
        if not said.get("files"):
            return f"found no run folder, expected {RUN}/: {said.get('last_line')}"
        if odd := odd_file(said["files"]):
            return f"{EVIDENCE}: found {odd}, expected files of {RUN}/ with size and hash"
        status, exit_status = status_of(said), said.get("exit_status")
        if exit_status == 0 and status in (WHOLE, TIME_LIMIT):
            return ""
        if exit_status != 0 and status in _GOES_ON and said["run"] != before.get("run"):
            return ""
        return f"training ended with exit status {exit_status}, its {STATUS} says {status}: {said.get('last_line')}"

    def _require_progress(self, number: int, said: dict[str, Any], before: dict[str, Any]) -> None:
        """Refuse to spend another session where the last one changed nothing; more hours may change that.

        Raises:
            KaggleError: it finished nothing.
        """
        was, now = (
            {name: hashed for name, hashed in one.get("files", {}).items() if Path(name).suffix in _OF_FITS}
            for one in (before, said)
        )
        hours = float(self.note(number).get("hours") or 0)
        is_stuck = was == now and number > 1 and not self.note(number + 1) and self.first.hours <= hours
        if is_stuck and status_of(said) == TIME_LIMIT:
            raise KaggleError(
                f"session {number}: found nothing more than session {number - 1} left, after {hours:g} hours: give "
                "--hours more, or a smaller recipe"
            )

    def _read(self, number: int) -> dict[str, Any]:
        return read_evidence(self.places.output(number) / EVIDENCE)

    def _bad_files(self, folder: Path, files: dict[str, list[Any]]) -> list[str]:
        """Files that have not arrived as the evidence says; what arrived otherwise is removed."""
        bad = []
        for name, (size, digest) in files.items():
            path = folder / RUN / name
            if not path.is_file() or path.stat().st_size != size or sha256(path) != digest:
                path.unlink(missing_ok=True)
                bad.append(name)
        return bad


def stands(number: int) -> str:
    """What stays where a session left nothing."""
    return "the cohort and the code stay there" if number == 1 else f"what session {number - 1} left stays"


def lost_line(number: int, began_from: Any) -> str:
    """What a session did not go on from, in a line; empty where it went on from the one before."""
    if began_from == number - 1:
        return ""
    if began_from:
        before = printable(str(began_from))
        return f"session {number}: went on from session {before}: what was trained in between is lost"
    earlier = "session 1" if number == 2 else f"sessions 1 to {number - 1}"
    return f"session {number}: began from nothing: what {earlier} trained is lost"


def odd_file(files: Any) -> str:
    """An entry of an evidence's files that cannot be one of a run folder; empty where all can."""
    if not isinstance(files, dict):
        return type(files).__name__
    for name, value in files.items():
        is_inside = not name.startswith("/") and not {"", ".", ".."} & set(name.split("/"))
        is_pair = isinstance(value, list) and [type(one) for one in value] == [int, str]
        if not is_inside or not is_pair:
            return ascii(name)[:80]
    return ""


def status_of(evidence: dict[str, Any]) -> str:
    """How a run stands after a session: ``whole``, ``time limit``, ``failed``, ``interrupted``; else ``unknown``."""
    run = evidence.get("run")
    return str(run.get("status") or "unknown") if isinstance(run, dict) else "unknown"


def describe(evidence: dict[str, Any]) -> str:
    """How the run stands, in one line."""
    run, hours = evidence["run"], float(evidence.get("seconds") or 0) / 3600
    left = run.get("left")
    rest = ", ".join(f"{name} {value}" for name, value in left.items()) if isinstance(left, dict) else ""
    return printable(f"{status_of(evidence)} after {hours:.1f} hours" + (f"; left: {rest}" if rest else ""))
