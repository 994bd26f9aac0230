"""``train --status RUN``: where a run stands, from its folder alone; neither torch nor pandas is loaded."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumbar.errors import CohortError
from lumbar.io.text import counted
from lumbar_train.files import read_object
from lumbar_train.outputs.run_lock import holds_run, locked_at, owner_in
from lumbar_train.outputs.session import FILE, asked_in, check_version, elapsed_s, read_log

_ENDED = {
    "whole": "whole",
    "time limit": "ended by its time limit",
    "failed": "ended by an error",
    "interrupted": "interrupted",
}


@dataclass(frozen=True)
class FoldStatus:
    """How far a stage is on a fold.

    Attributes:
        name: of the fold.
        is_finished: nothing is left to do; not where an earlier stage was fitted anew since.
        epochs: that its fits take; 0 for a stage that fits nothing in epochs.
        epochs_done: of them.
        seconds: spent on its fits.
    """

    name: str
    is_finished: bool
    epochs: int = 0
    epochs_done: int = 0
    seconds: float = 0.0

    def text(self) -> str:
        """The fold, and its epochs while it is not finished."""
        has_begun = self.epochs_done and not self.is_finished
        return f"{self.name} {self.epochs_done}/{self.epochs}" if has_begun else self.name


@dataclass(frozen=True)
class StageStatus:
    """How far a stage is on all its folds."""

    name: str
    folds: tuple[FoldStatus, ...]

    @property
    def epochs(self) -> int:
        """Epochs of all its fits."""
        return sum(fold.epochs for fold in self.folds)

    @property
    def epochs_done(self) -> int:
        """Epochs that are done, all of a finished fold's included."""
        return sum(fold.epochs if fold.is_finished else fold.epochs_done for fold in self.folds)

    @property
    def seconds(self) -> float:
        """Spent on its fits."""
        return sum(fold.seconds for fold in self.folds)

    @property
    def left_s(self) -> float | None:
        """Seconds that are left by the pace so far; None before its first epoch."""
        if all(fold.is_finished for fold in self.folds):
            return 0.0
        return self.seconds / self.epochs_done * (self.epochs - self.epochs_done) if self.epochs_done else None


def status_lines(run: Path) -> list[str]:
    """Where a run stands, as a table.

    Raises:
        CohortError: the folder holds no run, or one of a newer version.
    """
    if not holds_run(run):
        raise CohortError(f"--status {run}: found no run, expected a folder that a training has left")
    check_version(run)
    plan = _plan(run)
    stages = [
        StageStatus(
            entry["stage"], tuple(_fold(run, entry["stage"], name, fits) for name, fits in entry["folds"].items())
        )
        for entry in _asked(run, plan)
    ]
    width = max([len(stage.name) for stage in stages], default=0) + 2
    head = f"{'stage':<{width}}{'folds':>10}{'epochs':>14}{'h spent':>9}{'h left':>9}  folds"
    lines = [_title(run), head, *(_line(stage, width) for stage in stages), *_whole(run, stages, width)]
    names = {stage.name for stage in stages}
    if others := [entry["stage"] for entry in plan if entry["stage"] not in names]:
        lines.append(f"stages of the recipe that no call has asked for: {', '.join(others)}")
    return lines


def _title(run: Path) -> str:
    session, recipe = read_object(run / FILE), read_object(run / "recipe.json").get("name", "an unknown recipe")
    if owner_in(run) is not None:
        return f"{run}: recipe {recipe}, running"
    if not session:
        return f"{run}: recipe {recipe}"
    ended = _ENDED.get(str(session.get("status")), "in an unknown state")
    return f"{run}: recipe {recipe}, {counted(int(session.get('sessions', 1)), 'session')}, {ended}"


def _line(stage: StageStatus, width: int) -> str:
    done = sum(fold.is_finished for fold in stage.folds)
    epochs = f"{stage.epochs_done} of {stage.epochs}" if stage.epochs else "-"
    spent = _hours(stage.seconds) if stage.epochs else "-"
    left = _hours(stage.left_s) if stage.epochs else "-"
    parts = {
        "done": [fold.text() for fold in stage.folds if fold.is_finished],
        "begun": [fold.text() for fold in stage.folds if not fold.is_finished and fold.epochs_done],
        "left": [fold.text() for fold in stage.folds if not fold.is_finished and not fold.epochs_done],
    }
    folds = "; ".join(f"{word} {', '.join(names)}" for word, names in parts.items() if names)
    return f"{stage.name:<{width}}{f'{done} of {len(stage.folds)}':>10}{epochs:>14}{spent:>9}{left:>9}  {folds}"


def _whole(run: Path, stages: Sequence[StageStatus], width: int) -> list[str]:
    folds = [fold for stage in stages for fold in stage.folds]
    done, total = sum(stage.epochs_done for stage in stages), sum(stage.epochs for stage in stages)
    every = [stage.left_s for stage in stages if stage.epochs]
    known = [seconds for seconds in every if seconds is not None]
    left = sum(known) if known or not every else None
    row = f"{f'{sum(fold.is_finished for fold in folds)} of {len(folds)}':>10}{f'{done} of {total}':>14}"
    row += f"{_hours(sum(stage.seconds for stage in stages)):>9}{_hours(left):>9}"
    lines = [f"{'whole':<{width}}{row}"]
    if unknown := len(every) - len(known):
        lines.append(f"hours left do not count {counted(unknown, 'stage')} without an epoch yet")
    since = locked_at(run)
    elapsed = elapsed_s(run, read_object(run / FILE), since)
    if elapsed is not None:
        running = "" if since is None else "the running one, "
        lines.append(f"all sessions together took {_hours(elapsed)} h, {running}predictions and reports included")
    return lines


def _hours(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds / 3600:.2f}"


def _fold(run: Path, stage: str, fold: str, fits: Sequence[Mapping[str, Any]]) -> FoldStatus:
    total = done = 0
    seconds = 0.0
    for fit in fits:
        total += int(fit["epochs"])
        n_epochs, spent = _progress(run / str(fit["folder"]), int(fit["epochs"]))
        done, seconds = done + n_epochs, seconds + spent
    return FoldStatus(fold, _is_finished(run, stage, fold), total, min(done, total), seconds)


def _is_finished(run: Path, stage: str, fold: str) -> bool:
    """Whether a stage is noted as done on a fold, and what it was made from is so still, back to the first stage."""
    note = run / stage / f"{fold}.done.json"
    if not note.is_file():
        return False
    made_from = read_object(note).get("from") or {}
    # "axial_all/fold0" is a stage on a fold; other keys are settings
    earlier = {key: left for key, left in made_from.items() if "/" in key and left is not None}
    return all(
        left == read_object(run / f"{key}.done.json").get("left") and _is_finished(run, *key.split("/"))
        for key, left in earlier.items()
    )


def _progress(fit: Path, epochs: int) -> tuple[int, float]:
    """Epochs that a fit has done, and the seconds that they took."""
    result = read_object(fit / "fit.json")
    if result:
        return epochs, float(result.get("seconds", 0.0))
    return read_log(fit / "log.csv")


def _plan(run: Path) -> list[dict[str, Any]]:
    """The stages with their folds and fits; for a run of before ``session.json`` from its recipe and folds."""
    noted = read_object(run / FILE).get("plan")
    if noted:
        return list(noted)
    names = [f"fold{fold}" for fold in _folds(run / "folds.csv")]
    names += [path.stem for path in sorted(run.glob("*/full*.safetensors"))] or ["full"]
    plan = []
    for stage, entry in read_object(run / "recipe.json").get("stages", {}).items():
        epochs = int((entry.get("fit") or {}).get("epochs", 0)) if stage != "aggregator" else 0
        fits = [(name, [{"folder": f"{stage}/{name}", "epochs": epochs}]) for name in dict.fromkeys(names)]
        plan.append({"stage": stage, "folds": {name: some if epochs else [] for name, some in fits}})
    return plan


def _asked(run: Path, plan: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of the plan what the calls so far were asked for (``--stages``, ``--folds``); all where that is not noted."""
    asked = asked_in(read_object(run / FILE))
    if not asked:
        return [dict(entry) for entry in plan]
    chosen = []
    for entry in plan:
        names = asked.get(entry["stage"])
        if names:
            folds = {name: fits for name, fits in entry["folds"].items() if name in names}
            chosen.append({"stage": entry["stage"], "folds": folds})
    return chosen


def _folds(path: Path) -> list[int]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return sorted({int(row["fold"]) for row in csv.DictReader(file)})
    except (OSError, ValueError, KeyError):
        return []
