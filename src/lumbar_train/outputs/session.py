"""``session.json``: where a run stands after the sessions that it was given so far.

A run may be made in several calls, on several machines. The file says how the last one ended and what is left; what is
finished is told by the fits and tables themselves. It is read without torch.
"""

from __future__ import annotations

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
            "sessions": self.sessions,
            "machine": platform.node(),
            "command": self.command,
            "asked": {stage: list(folds) for stage, folds in self.asked.items()},
            "plan": list(self.plan),
        }
        write_text(self.path, json.dumps(content, indent=1) + "\n")


def elapsed_s(folder: Path, noted: Mapping[str, Any], is_running: bool = False) -> float | None:
    """Seconds that all calls took so far; None where none is noted.

    The file is written at each finished stage. What a call did since is told by the clock while it runs, and by the
    last line of a fit's log where it was killed.

    Args:
        folder: the run.
        noted: the content of its ``session.json``.
        is_running: a call writes it now.
    """
    seconds = noted.get("elapsed_s")
    if seconds is None or not (is_running or noted.get("status") == "interrupted"):
        return None if seconds is None else float(seconds)
    try:
        written = (folder / FILE).stat().st_mtime
        last = time.time() if is_running else max(log.stat().st_mtime for log in folder.glob("*/*/log.csv"))
    except (OSError, ValueError):
        return float(seconds)
    return float(seconds) + max(0.0, last - written)


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
