"""``session.json``: where a run stands after the sessions that it was given so far.

A run may be made in several calls, on several machines. The file says how the last one ended and what is left; what is
finished is told by the fits and tables themselves. It is read without torch.
"""

from __future__ import annotations

import csv
import json
import platform
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lumbar
from lumbar.errors import CohortError
from lumbar_train.files import read_object, write_text

FILE = "session.json"
SCHEMA = 1  # of a run folder: a program refuses one that is newer than itself
Status = Literal["whole", "time limit", "failed", "interrupted"]


@dataclass
class Session:
    """One call of ``train`` on a run folder, as the folder notes it.

    Attributes:
        path: of the file.
        run: names the run, wherever it is copied to.
        sessions: calls so far, this one included.
        before_s: seconds of the calls before.
        plan: every stage of the recipe with its folds and fits, for ``train --status``.
        left: folds that a stage was asked for in this call and is not finished on, by stage.
        began: when this call began (``time.monotonic``).
        asked: the folds, by stage, that this call or an earlier one was asked for.
        n_finished: stages on folds that this call has finished.
        command: the command line that makes the run whole.
    """

    path: Path
    run: str
    sessions: int
    before_s: float
    plan: Sequence[Mapping[str, Any]]
    left: dict[str, int]
    began: float
    asked: Mapping[str, Sequence[str]] = field(default_factory=dict)
    n_finished: int = 0
    command: str = ""

    @classmethod
    def begin(
        cls,
        folder: Path,
        plan: Sequence[Mapping[str, Any]],
        left: dict[str, int],
        began: float,
        asked: Mapping[str, Sequence[str]] | None = None,
        command: str = "",
    ) -> Session:
        """Note a call that begins; should it be killed, the file says ``interrupted``."""
        former = read_object(folder / FILE)
        session = cls(
            folder / FILE,
            str(former.get("run") or secrets.token_hex(8)),
            int(former.get("sessions", 0)) + 1,
            elapsed_s(folder, former) or 0.0,
            plan,
            left,
            began,
            _joined(asked_in(former), asked or {}),
            command=command,
        )
        session.write("interrupted")
        return session

    def finished(self, stage: str) -> None:
        """Note that a stage is done on one of its folds."""
        self.n_finished += 1
        self.left[stage] = self.left.get(stage, 1) - 1
        self.left = {name: count for name, count in self.left.items() if count > 0}
        self.write("interrupted")

    def write(self, status: Status) -> None:
        """Write the file, whole or not at all; ``status`` is how the call has ended."""
        elapsed_s = time.monotonic() - self.began
        content = {
            "schema": SCHEMA,
            "lumbar": lumbar.__version__,
            "run": self.run,
            "status": status,
            "left": self.left,
            "elapsed_s": round(self.before_s + elapsed_s, 1),
            "session_s": round(elapsed_s, 1),
            "noted_at": round(time.time(), 1),
            "spent_s": spent_s(self.path.parent),
            "sessions": self.sessions,
            "machine": platform.node(),
            "command": self.command,
            "asked": {stage: list(folds) for stage, folds in self.asked.items()},
            "plan": list(self.plan),
        }
        write_text(self.path, json.dumps(content, indent=1) + "\n")


def elapsed_s(folder: Path, noted: Mapping[str, Any], locked_at: float | None = None) -> float | None:
    """Seconds that all calls took so far; None where none is noted.

    The file is written at each finished stage. What a call did since is told by the clock while it runs, and by the
    seconds in the logs of its fits where it was killed. Times of files are not asked: a copy has others.

    Args:
        folder: the run.
        noted: the content of its ``session.json``.
        locked_at: when the call that runs now took its lock (``time.time``); None where none runs. What the file says
            may be of the call before, which ended long ago.
    """
    seconds = number_in(noted, "elapsed_s")
    if seconds is None:
        return None
    written = number_in(noted, "noted_at") or 0.0
    if locked_at is not None and written >= locked_at:
        return seconds + max(0.0, time.time() - written)
    if noted.get("status") == "interrupted":
        seconds += _since(noted.get("spent_s"), spent_s(folder))
    return seconds if locked_at is None else seconds + max(0.0, time.time() - locked_at)


def number_in(noted: Mapping[str, Any], name: str) -> float | None:
    """A number of a note; None where it is none."""
    value = noted.get(name)
    return float(value) if isinstance(value, int | float) else None


def spent_s(folder: Path) -> dict[str, float]:
    """Seconds that the fits of each stage on each fold took so far, by ``stage/fold``, as their logs say."""
    spent: dict[str, float] = {}
    for pattern in ("*/*/log.csv", "*/*/*/log.csv"):
        for log in folder.glob(pattern):
            name = "/".join(log.relative_to(folder).parts[:2])
            spent[name] = round(spent.get(name, 0.0) + read_log(log)[1], 1)
    return spent


def read_log(log: Path) -> tuple[int, float]:
    """Epochs that a fit's ``log.csv`` has, and the seconds that they took; zeros where it cannot be read."""
    try:
        with log.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return len(rows), float(rows[-1]["seconds"]) if rows else 0.0
    except (OSError, ValueError, KeyError, TypeError):
        return 0, 0.0


def _since(before: Any, now: Mapping[str, float]) -> float:
    """The longest that a fold has been fitted since a note; folds may be fitted side by side. 0 without a note."""
    if not isinstance(before, Mapping):
        return 0.0
    more = (seconds - (number_in(before, name) or 0.0) for name, seconds in now.items())
    return max([0.0, *more])


def asked_in(noted: Mapping[str, Any]) -> dict[str, list[str]]:
    """The folds, by stage, that a run's calls were asked for so far; earlier versions noted the stages alone.

    Args:
        noted: the content of ``session.json``.
    """
    asked = noted.get("asked") or {}
    if isinstance(asked, Mapping):
        return {str(stage): list(folds) for stage, folds in asked.items()}
    every = {entry["stage"]: list(entry["folds"]) for entry in noted.get("plan", ())}
    return {stage: every.get(stage, []) for stage in asked}


def _joined(before: Mapping[str, Sequence[str]], now: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """What either was asked for."""
    names = dict.fromkeys([*before, *now])
    return {stage: list(dict.fromkeys([*before.get(stage, ()), *now.get(stage, ())])) for stage in names}


def check_version(run: Path) -> None:
    """Refuse a run folder that a newer version of this package has written.

    Raises:
        CohortError: its version or schema, and the newest that is known.
    """
    for name in (FILE, "recipe.json"):
        content = read_object(run / name)
        schema, version = content.get("schema", SCHEMA), str(content.get("lumbar", lumbar.__version__))
        if not isinstance(schema, int) or schema > SCHEMA or _release(version) > _release(lumbar.__version__):
            raise CohortError(
                f"{run / name}: found a run of lumbar {version} (schema {schema}), expected one of "
                f"{lumbar.__version__} or older (schema {SCHEMA}); go on with that version"
            )


def _release(version: str) -> tuple[int, ...]:
    """Major and minor number of a version; what cannot be read counts as newer than any."""
    try:
        return tuple(int(number) for number in version.split(".")[:2])
    except ValueError:
        return (2**31,)


def text_of(left: Mapping[str, int]) -> str:
    """What is left in words: ``axial_xy 2, axial_all 5``."""
    return ", ".join(f"{stage} {count}" for stage, count in left.items())
