"""What a folder holds of a cohort that was made before: another one never takes its place unasked.

``ROOT/train_cohort.json`` says with which settings a finished cohort was made; its table of series says which studies
it has. Of one that is not finished the journals say both: one of a cohort in one go, or one of each part
(``lumbar_phantom.parts``).
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lumbar.errors import CohortError
from lumbar.io.checked_lines import CheckedLines, read_heads
from lumbar.io.competition import SPLITS
from lumbar.io.files import atomic_file, write_atomically
from lumbar.io.tables import csv_text
from lumbar.io.text import counted, printable
from lumbar.workers.shards import Shard
from lumbar_phantom.parts import FOLDER, HEADER, LATER, REMADE, SUFFIX, Plan, part_files, study_id_of
from lumbar_phantom.study import TEST_OFFSET, study_number
from lumbar_phantom.truth_files import CONTRASTS, TRUTH, read_truth_file


@dataclass(frozen=True)
class Earlier:
    """A cohort of the same split, or a part of one, that lies where another one is asked for.

    Attributes:
        root: its folder.
        split: train or test.
        study_ids: that its table lists, or that its journal was to make.
        settings: as ``Plan.head`` gives them; empty where they are not known.
        journal: of one that is not finished; None for one whose tables stand.
        is_part: its journal is that of a part.
    """

    root: Path
    split: str
    study_ids: frozenset[int]
    settings: Mapping[str, Any]
    journal: Path | None = None
    is_part: bool = False

    def difference(self, plan: Plan) -> tuple[str, str] | None:
        """What is here and what is asked for, in words; None where both belong to one cohort and nothing is lost."""
        head = plan.head()
        if other := other_setting(self.settings, head["settings"]):
            return other
        own = frozenset(map(study_id_of, plan.own()))
        if self._fits(plan, own):
            return None
        here, there = counted(len(self.study_ids), "study"), counted(len(own), "study")
        if here != there:
            return here, there
        first, last = plan.requests[0].index, plan.requests[-1].index
        return "other studies", f"those of seed {head['settings']['seed']} with index {first} to {last}"

    def _fits(self, plan: Plan, own: frozenset[int]) -> bool:
        """Whether a plan of the same settings makes these studies, or those of another part of them."""
        if own == self.study_ids:
            return True
        if not self.is_part:
            return plan.is_part and own <= self.study_ids
        return self.journal != plan.path() if plan.is_part else self.study_ids <= own

    def kept_truth(self) -> dict[str, pd.DataFrame]:
        """The tables of the truth, by name, without the rows of this finished cohort.

        Raises:
            CohortError: one is damaged, or a study that the table of series lists is no phantom.
        """
        tables = {name: read_truth_file(self.root, name) for name in (CONTRASTS, TRUTH)}
        truth = tables[TRUTH]
        made: set[int] = set() if truth is None else set(truth.study_id)
        # an --overwrite that was interrupted has removed studies, and their rows here, before the table of series
        if strange := [study_id for study_id in self.study_ids - made if self._images(study_id).exists()]:
            raise CohortError(
                f"{self.root}: found {counted(len(strange), 'study')} that {TRUTH} does not list, expected "
                "phantoms alone; nothing is removed, use another --out"
            )
        return {name: rows[~rows.study_id.isin(self.study_ids)] for name, rows in tables.items() if rows is not None}

    def remove(self) -> None:
        """Remove its studies and its tables, and nothing else; the table of series last, so that it can go on.

        Raises:
            CohortError: as ``kept_truth``; nothing is removed then.
        """
        kept = self.kept_truth() if self.journal is None else {}
        for study_id in sorted(self.study_ids):
            for folder in (self._images(study_id), self.root / "truth_masks" / str(study_id)):
                if folder.is_dir():
                    shutil.rmtree(folder)
        if self.journal is None:
            self._remove_tables(kept)

    def _remove_tables(self, kept: Mapping[str, pd.DataFrame]) -> None:
        for name, rows in kept.items():
            if name == CONTRASTS:
                write_atomically(self.root / name, csv_text(rows))
                continue
            with atomic_file(self.root / name) as file:
                rows.to_parquet(file, index=False)
        for path in (*_own_tables(self.root, self.split), record_path(self.root, self.split)):
            path.unlink(missing_ok=True)
        _table(self.root, self.split).unlink()

    def _images(self, study_id: int) -> Path:
        return self.root / f"{self.split}_images" / str(study_id)


def other_setting(here: Mapping[str, Any], asked: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first setting that differs, in words, as it is here and as it is asked for; None where all agree.

    A setting that is not known here counts as equal.
    """
    here = LATER | dict(here) if here else here
    for name, value in (LATER | dict(asked)).items():
        if name not in REMADE and here.get(name, value) != value:
            return f"{name} {printable(here[name], 60)}", f"{name} {printable(value, 60)}"
    return None


def check_earlier(plan: Plan, resume: bool, overwrite: bool) -> list[Earlier]:
    """Find the cohorts whose place another one would take.

    Args:
        plan: what is to be made.
        resume: the plan's own journal is gone on with, and compares itself.
        overwrite: they may be removed; not for a part, beside which others may be at work.

    Returns:
        those to remove; empty without ``overwrite``.

    Raises:
        CohortError: there is one, and it may not or cannot be removed; or a table that would be written is not of a
            cohort of phantoms.
    """
    root, split = Path(plan.requests[0].root), plan.requests[0].split
    may_remove = overwrite and not plan.is_part
    replaced = []
    for earlier in _all_earlier(root, split):
        if resume and not may_remove and earlier.journal == plan.path():
            continue
        difference = earlier.difference(plan)
        if difference is None:
            continue
        if not may_remove:
            here = "the unfinished cohort" if earlier.journal else "the cohort"
            advice = "empty that folder" if plan.is_part else "--overwrite to remove its studies and tables"
            raise CohortError(
                f"{root}: found {here} of the split {split} with {difference[0]}, expected {difference[1]} or no such "
                f"cohort; use another --out, or {advice} first"
            )
        if earlier.journal is None:
            earlier.kept_truth()
        replaced.append(earlier)
    _check_tables(root, split)
    return replaced


def remove_earlier(replaced: Sequence[Earlier], held: Path) -> None:
    """Remove cohorts.

    Args:
        replaced: as ``check_earlier`` returns them.
        held: the journal that this process holds; it stays, to be begun anew by the one who holds it.

    Raises:
        CohortError: another process makes one of them, or what is left cannot be removed; nothing is removed then.
    """
    with ExitStack() as stack:
        journals = {}
        for path in (earlier.journal for earlier in replaced):
            if path is not None and path != held:
                journals[path] = CheckedLines(path)
                stack.callback(journals[path].close)
        for earlier in replaced:
            earlier.remove()
            if earlier.journal in journals:
                journals[earlier.journal].close(remove=True)


def check_merged(root: Path, split: str, study_ids: Iterable[int], head: Mapping[str, Any]) -> None:
    """See that tables of all parts would not take the place of others that list more studies, or other ones.

    Args:
        root: the cohort's folder.
        split: train or test.
        study_ids: of all parts.
        head: of all parts.

    Raises:
        CohortError: they would.
    """
    earlier = _finished(root, split)
    if earlier is None:
        return _check_tables(root, split)
    if other := other_setting(earlier.settings, head["settings"]):
        raise CohortError(
            f"{root}: found tables of the split {split} of a cohort with {other[0]}, expected {other[1]} as the parts "
            f"have; remove their journals ({root / FOLDER / split}.*{SUFFIX}), or make them in another --out"
        )
    if lost := len(earlier.study_ids - set(study_ids)):
        raise CohortError(
            f"{root}: found tables of the split {split} with {counted(lost, 'study')} that no part has, expected the "
            "parts of all studies; make the missing parts too, or all of them in another --out"
        )


def _check_tables(root: Path, split: str) -> None:
    """See that no table stands, where no cohort of phantoms does, which one would write over.

    Raises:
        CohortError: one does.
    """
    records = {name: record_path(root, name).exists() for name in SPLITS}
    tables = [] if records[split] or _table(root, split).exists() else _own_tables(root, split)
    if not any(records.values()) and not (root / TRUTH).exists():
        tables += [root / "sample_submission.csv"] if writes_sample(root, split) else []
    if path := next((path for path in tables if path.exists()), None):
        raise CohortError(f"{path}: found a table that no cohort of phantoms has, expected another --out")


def writes_sample(root: Path, split: str) -> bool:
    """Whether ``sample_submission.csv`` is written with a split's tables: that of a test split stays with train."""
    return split == "test" or not ((root / "sample_submission.csv").exists() and (root / "test_images").exists())


def record_path(root: Path, split: str) -> Path:
    """The file that says with which settings a cohort was made."""
    return root / f"{split}_cohort.json"


def write_record(root: Path, split: str, head: Mapping[str, Any]) -> None:
    """Note how a finished cohort was made; ``head`` is that of its plan, or of its parts."""
    noted = {"settings": head["settings"], "range": head["range"]}
    write_atomically(record_path(root, split), json.dumps(noted, indent=1) + "\n")


def _table(root: Path, split: str) -> Path:
    return root / f"{split}_series_descriptions.csv"


def _own_tables(root: Path, split: str) -> list[Path]:
    """The split's tables but that of series."""
    return [root / ("train.csv" if split == "train" else "solution.csv"), root / f"{split}_label_coordinates.csv"]


def _all_earlier(root: Path, split: str) -> Iterator[Earlier]:
    """What the split has: the cohort whose tables stand, the one begun in one go, and the parts."""
    if (earlier := _finished(root, split)) is not None:
        yield earlier
    for path in (root / FOLDER / f"{split}{SUFFIX}", *part_files(root, split)):
        if (earlier := _unfinished(root, split, path)) is not None:
            yield earlier


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
    return Earlier(root, split, study_ids, settings)


def _unfinished(root: Path, split: str, path: Path) -> Earlier | None:
    """The cohort, or the part of one, of a journal; None where no study was noted in it."""
    if not path.is_file():
        return None
    try:
        head = next(head for _, head in read_heads(path) if head is not None and HEADER in head)
        first, last = head["range"]
        shard = None if head["shard"] is None else Shard(*head["shard"])
        settings = dict(head["settings"])
        offset = TEST_OFFSET if split == "test" else 0
        ids = (study_number(settings["seed"], index + offset) for index in range(first, last + 1))
        own = frozenset(study_id for study_id in ids if shard is None or shard.has(study_id))
    except (CohortError, StopIteration, ValueError, LookupError, TypeError):
        return None
    return Earlier(root, split, own, settings, path, is_part=path != root / FOLDER / f"{split}{SUFFIX}")
