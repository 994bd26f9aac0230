"""What a folder holds of a cohort that was made before: another one never takes its place unasked.

``ROOT/train_cohort.json`` says with which settings a finished cohort was made; its table of series says which studies
it has. Of one that is not finished the journal says both (``lumbar_phantom.parts``).
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lumbar.errors import CohortError
from lumbar.io.checked_lines import read_heads
from lumbar.io.files import atomic_file, write_atomically
from lumbar.io.tables import csv_text
from lumbar.io.text import counted, printable
from lumbar_phantom.parts import Plan, study_id_of
from lumbar_phantom.study import TEST_OFFSET, study_number

_NOT_COMPARED = ("version", "masks")  # masks are files of their own beside the others


@dataclass(frozen=True)
class Earlier:
    """A cohort of the same split that lies where another one is asked for.

    Attributes:
        root: its folder.
        split: train or test.
        study_ids: that its table lists, or that its journal was to make.
        settings: as ``Plan.head`` gives them; empty where they are not known.
        has_tables: it is finished.
    """

    root: Path
    split: str
    study_ids: frozenset[int]
    settings: Mapping[str, Any]
    has_tables: bool

    def difference(self, plan: Plan) -> tuple[str, str] | None:
        """What is here and what is asked for, in words; None where a plan makes the same studies, or some of them."""
        own = frozenset(map(study_id_of, plan.own()))
        asked = plan.head()["settings"]
        for name, value in asked.items():
            if name not in _NOT_COMPARED and self.settings.get(name, value) != value:
                return f"{name} {printable(self.settings[name], 60)}", f"{name} {printable(value, 60)}"
        if own == self.study_ids or (plan.is_part and own <= self.study_ids):
            return None
        here, there = counted(len(self.study_ids), "study"), counted(len(own), "study")
        if here != there:
            return here, there
        first, last = plan.requests[0].index, plan.requests[-1].index
        return "other studies", f"those of seed {asked['seed']} with index {first} to {last}"

    def remove(self) -> None:
        """Remove its studies and its tables, and nothing else; the table of series last, so that it can go on.

        Raises:
            CohortError: not all studies of its table are phantoms.
        """
        truth = self.root / "truth.parquet"
        if self.has_tables:
            made = set(pd.read_parquet(truth, columns=["study_id"]).study_id) if truth.is_file() else set()
            if strange := self.study_ids - made:
                raise CohortError(
                    f"{self.root}: found {counted(len(strange), 'study')} that truth.parquet does not list, expected "
                    "phantoms alone; nothing is removed, use another --out"
                )
        for study_id in sorted(self.study_ids):
            for folder in (self.root / f"{self.split}_images", self.root / "truth_masks"):
                if (folder / str(study_id)).is_dir():
                    shutil.rmtree(folder / str(study_id))
        if self.has_tables:
            self._remove_tables(truth)

    def _remove_tables(self, truth: Path) -> None:
        if (contrasts := self.root / "truth_contrasts.csv").is_file():
            write_atomically(contrasts, csv_text(self._others(pd.read_csv(contrasts))))
        labels = "train.csv" if self.split == "train" else "solution.csv"
        for path in (labels, f"{self.split}_label_coordinates.csv", record_path(self.root, self.split).name):
            (self.root / path).unlink(missing_ok=True)
        _table(self.root, self.split).unlink()
        with atomic_file(truth) as file:  # after the table, which it is compared with
            self._others(pd.read_parquet(truth)).to_parquet(file, index=False)

    def _others(self, rows: pd.DataFrame) -> pd.DataFrame:
        return rows[~rows.study_id.isin(self.study_ids)]


def check_earlier(plan: Plan, resume: bool, overwrite: bool) -> list[Earlier]:
    """Find the cohorts whose place another one would take.

    Args:
        plan: what is to be made.
        resume: a journal is gone on with, and compares itself.
        overwrite: they may be removed.

    Returns:
        those to remove; empty without ``overwrite``.

    Raises:
        CohortError: there is one, and it may not be removed.
    """
    root, split = Path(plan.requests[0].root), plan.requests[0].split
    replaced = []
    for earlier in (_finished(root, split), None if resume or plan.is_part else _unfinished(plan)):
        difference = None if earlier is None else earlier.difference(plan)
        if earlier is None or difference is None:
            continue
        if not overwrite:
            part = "the cohort" if earlier.has_tables else "the unfinished cohort"
            raise CohortError(
                f"{root}: found {part} of the split {split} with {difference[0]}, expected {difference[1]} or no such "
                "cohort; use another --out, or --overwrite to remove its studies and tables first"
            )
        replaced.append(earlier)
    return replaced


def check_merged(root: Path, split: str, study_ids: Iterable[int]) -> None:
    """See that tables of all parts would not leave out studies that the present tables list.

    Raises:
        CohortError: they would.
    """
    earlier = _finished(root, split)
    lost = 0 if earlier is None else len(earlier.study_ids - set(study_ids))
    if earlier is not None and lost:
        raise CohortError(
            f"{root}: found tables of the split {split} with {counted(lost, 'study')} that no part has, expected the "
            "parts of all studies; make the missing parts again, or merge in another folder"
        )


def record_path(root: Path, split: str) -> Path:
    """The file that says with which settings a cohort was made."""
    return root / f"{split}_cohort.json"


def write_record(root: Path, split: str, head: Mapping[str, Any]) -> None:
    """Note how a finished cohort was made; ``head`` is that of its plan, or of its parts."""
    noted = {"settings": head["settings"], "range": head["range"]}
    write_atomically(record_path(root, split), json.dumps(noted, indent=1) + "\n")


def _table(root: Path, split: str) -> Path:
    return root / f"{split}_series_descriptions.csv"


def _finished(root: Path, split: str) -> Earlier | None:
    """The cohort whose tables stand."""
    path = _table(root, split)
    if not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8", newline="") as file:
            study_ids = frozenset(int(row["study_id"]) for row in csv.DictReader(file))
    except (OSError, ValueError, KeyError, TypeError):
        raise CohortError(f"{path}: found a table that no cohort of phantoms has, expected another --out") from None
    settings: dict[str, Any] = {}
    with suppress(OSError, ValueError, LookupError, TypeError):
        settings = dict(json.loads(record_path(root, split).read_text("utf-8"))["settings"])
    return Earlier(root, split, study_ids, settings, has_tables=True)


def _unfinished(plan: Plan) -> Earlier | None:
    """The cohort that was begun in one go, and whose tables wait."""
    path = plan.path()
    if not path.is_file():
        return None
    root, split = Path(plan.requests[0].root), plan.requests[0].split
    try:
        head = next(head for _, head in read_heads(path) if head is not None)
        first, last = head["range"]
        settings = dict(head["settings"])
        offset = TEST_OFFSET if split == "test" else 0
        ids = frozenset(study_number(settings["seed"], index + offset) for index in range(first, last + 1))
    except (CohortError, StopIteration, ValueError, LookupError, TypeError):
        return None  # no study was noted
    return Earlier(root, split, ids, settings, has_tables=False)
