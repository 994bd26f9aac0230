"""Makes a whole cohort in the competition's layout; the bytes do not depend on the number of workers."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lumbar import labels
from lumbar.io.files import atomic_file, make_folder, write_atomically
from lumbar.io.progress import Progress
from lumbar.io.tables import csv_text
from lumbar.workers.shards import Shard
from lumbar_phantom import severity
from lumbar_phantom._jit import compiling
from lumbar_phantom.dicom_files import OPTIONAL, optional_encoder
from lumbar_phantom.earlier import Earlier, check_earlier, check_merged, remove_earlier, write_record, writes_sample
from lumbar_phantom.parts import PartJournal, Plan, merge_parts, remove_parts, study_id_of
from lumbar_phantom.study import Request, write_study
from lumbar_phantom.tables import StudyTables
from lumbar_phantom.truth_files import CONTRASTS, TRUTH, read_truth_file

TRUTH_COLUMNS = [
    "study_id",
    "series_id",
    "instance_number",
    "condition",
    "level",
    "side",
    "x_px",
    "y_px",
    "x_mm",
    "y_mm",
    "z_mm",
    "narrowing",
]
_ENOUGH = 10  # studies whose own prior says something; that of one study is its answer
CONTRAST_COLUMNS = ["study_id", "series_id", "contrast", "randomised"]
COORDINATE_COLUMNS = ["study_id", "series_id", "instance_number", "condition", "level", "x", "y"]


def make_cohort(
    root: Path | str,
    studies: int,
    seed: int,
    *,
    pitfalls: tuple[str, ...] = ("real",),
    split: str = "train",
    workers: int = 1,
    masks: bool = False,
    randomised_share: float = 0.3,
    syntax: str = "rle",
    hard_share: float = 0.0,
    family: str = "",
    progress: bool = True,
    shard: Shard | None = None,
    first: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> list[StudyTables]:
    """Write a cohort, or with ``shard`` or ``first`` a part of one, whose tables ``merge_cohort`` writes.

    Args:
        root: folder to fill.
        studies: how many.
        seed: the same seed gives the same bytes.
        pitfalls: as `pitfalls.parse` returns them.
        split: train or test.
        workers: processes.
        masks: also write tissue masks of the sagittal series.
        randomised_share: share of series, 0..1, whose contrast is redrawn far beyond the realistic.
        syntax: transfer syntax, a name in `dicom_files.SYNTAXES`.
        hard_share: share of patients, 0..1, that are hard to number (`junction`, `hard_images`).
        family: one of `families.NAMES`, whose appearance all series get; empty for none.
        progress: say how far it has come.
        shard: the part of the studies to make; None for all.
        first: index of the first study; None for a whole cohort, from 0.
        resume: leave out the studies that an earlier run has finished.
        overwrite: first remove another cohort of the same split that lies in root, finished or not. Not for a part.

    Returns:
        the studies' rows of the tables, in the order of their index.

    Raises:
        CohortError: root cannot be written, a package is missing, or what lies there is another's, in use or damaged.
    """
    if syntax in OPTIONAL:
        optional_encoder(syntax)  # refused here, before any study is made
    start, settings = first or 0, (pitfalls, masks, randomised_share, syntax, hard_share, family)
    plan = Plan([Request(str(root), split, seed, start + i, *settings) for i in range(studies)], first, shard)
    replaced = check_earlier(plan, resume, overwrite)
    _kept_truth(Path(root), split)  # refused here where it is damaged
    return _made(plan, make_folder(root), _journal(plan, resume, replaced), workers, progress)


def _made(plan: Plan, root: Path, journal: PartJournal, workers: int, progress: bool) -> list[StudyTables]:
    """Make what the journal lacks, and the tables of a whole cohort."""
    is_done = False
    try:
        _make(plan, journal, workers, progress)
        done = journal.tables()
        if not plan.is_part:
            write_tables(root, plan.requests[0].split, done, plan.head())
            is_done = True
    finally:
        journal.close(remove=is_done or not (len(journal) or _has_files(plan)))
    return done


def _journal(plan: Plan, resume: bool, replaced: list[Earlier]) -> PartJournal:
    """The journal of a plan, once what it takes the place of is removed; one that is replaced is not gone on with."""
    goes_on = resume and plan.path() not in [earlier.journal for earlier in replaced]
    return PartJournal(plan, goes_on, prepare=lambda: remove_earlier(replaced, plan.path()))


def _has_files(plan: Plan) -> bool:
    """Whether a study of a plan has been begun, so that its journal must say whose it is."""
    request = plan.requests[0]
    images = Path(request.root) / f"{request.split}_images"
    return any((images / str(study_id_of(each))).exists() for each in plan.own())


def _make(plan: Plan, journal: PartJournal, workers: int, progress: bool) -> None:
    """Make the studies of a plan that the journal does not have."""
    requests = [request for request in plan.own() if request.index not in journal]
    if progress and requests and (line := compiling()):
        print(line, file=sys.stderr, flush=True)
    with Progress(len(requests), "study", is_shown=progress) as shown:
        for number, (request, tables) in enumerate(zip(requests, _run(requests, workers), strict=True), 1):
            journal.add(request.index, tables)
            shown.update(number)


def merge_cohort(root: Path | str, split: str = "train") -> list[StudyTables]:
    """Write the tables of a cohort that was made in parts; the parts' journals are removed then.

    Raises:
        CohortError: as ``merge_parts``; the present tables list studies that no part has, or were made otherwise; or a
            table cannot be written.
    """
    folder = Path(root)
    head, studies = merge_parts(folder, split)
    check_merged(folder, split, (study.study_id for study in studies), head)
    write_tables(folder, split, studies, head)
    remove_parts(folder, split)
    return studies


def _run(requests: list[Request], workers: int) -> Iterator[StudyTables]:
    if workers <= 1:
        yield from map(write_study, requests)
        return
    # spawn: the parent may hold threads (a progress bar, numba, torch) that a fork would break
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_ignore_interrupts)
    try:
        yield from pool.map(write_study, requests)
    except BaseException:  # Ctrl-C above all: nobody waits for studies that nobody will use
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _ignore_interrupts() -> None:
    """Ctrl-C reaches every process of a terminal; this one's parent ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def label_table(studies: list[StudyTables]) -> pd.DataFrame:
    """Content of train.csv: 25 columns of severities, empty where a label is missing."""
    names = (*labels.SEVERITIES, None)
    rows = [[s.study_id, *(names[g] for g in s.case_labels.ravel())] for s in studies]
    return pd.DataFrame(rows, columns=["study_id", *labels.COLUMNS])


def write_tables(root: Path, split: str, studies: list[StudyTables], head: Mapping[str, Any] | None = None) -> None:
    """Write all CSV files and truth.parquet of a cohort; with both splits in one root, the truths hold both.

    Args:
        root: the cohort's folder.
        split: train or test.
        studies: in the order of their index.
        head: says how they were made (``Plan.head``) and is noted first; None notes nothing.

    Raises:
        CohortError: a table cannot be written, or one with rows of the other split is damaged: then none is written.
    """
    kept = _kept_truth(root, split)
    if head is not None:
        write_record(root, split, head)
    solution = label_table(studies)
    write_atomically(root / ("train.csv" if split == "train" else "solution.csv"), csv_text(solution))
    described = pd.DataFrame(
        [r for s in studies for r in s.descriptions], columns=["study_id", "series_id", "series_description"]
    )
    write_atomically(root / f"{split}_series_descriptions.csv", csv_text(described))
    points = pd.DataFrame([r for s in studies for r in s.coordinates], columns=COORDINATE_COLUMNS)
    write_atomically(root / f"{split}_label_coordinates.csv", csv_text(points))  # of a test split for reports alone
    sample = pd.DataFrame({"row_id": [r for s in studies for r in labels.row_ids(s.study_id)]})
    for column in labels.SEVERITY_COLUMNS:
        sample[column] = 1 / 3
    if writes_sample(root, split):
        write_atomically(root / "sample_submission.csv", csv_text(sample))
    contrasts = pd.DataFrame([r for s in studies for r in s.contrasts], columns=CONTRAST_COLUMNS)
    write_atomically(root / CONTRASTS, csv_text(_beside_the_other_split(contrasts, kept.get(CONTRASTS), split)))
    truth = pd.DataFrame([r for s in studies for r in s.truth], columns=TRUTH_COLUMNS)
    with atomic_file(root / TRUTH) as file:
        _beside_the_other_split(truth, kept.get(TRUTH), split).to_parquet(file, index=False)


def _kept_truth(root: Path, split: str) -> dict[str, pd.DataFrame]:
    """The tables of the truth, by name, where they hold rows of the other split, whose images lie in the same root.

    Raises:
        CohortError: one is damaged.
    """
    other = "test" if split == "train" else "train"
    if not (root / f"{other}_images").exists():
        return {}
    tables = {name: read_truth_file(root, name) for name in (CONTRASTS, TRUTH)}
    return {name: rows for name, rows in tables.items() if rows is not None}


def _beside_the_other_split(rows: pd.DataFrame, kept: pd.DataFrame | None, split: str) -> pd.DataFrame:
    """Rows of a split beside those that a table keeps of the other one."""
    others = rows[:0] if kept is None else kept[~kept.study_id.isin(rows.study_id)]
    if not len(others):
        return rows
    # Train first, whichever was made last: the same cohorts have the same bytes
    return pd.concat([rows, others] if split == "train" else [others, rows], ignore_index=True)


def summary(studies: list[StudyTables]) -> str:
    """Text for the user: how often each severity occurs by condition, and the floor score."""
    grades = np.stack([s.grades for s in studies])
    narrowing = np.stack([s.narrowing for s in studies])
    lines = []
    for group, members in labels.GROUPS.items():
        part = grades[:, list(members)]
        shares = ", ".join(f"{name} {100 * (part == g).mean():.1f} %" for g, name in enumerate(labels.SEVERITIES))
        lines.append(f"{group}: {shares}")
    best, prior = severity.oracle_score(narrowing, grades)
    floor = f"floor: true narrowing scores {best:.3f}, which nobody can beat but by luck"
    if len(studies) >= _ENOUGH:
        floor += f"; the cohort's own prior {prior:.3f} ({best / prior:.2f} of it)"
    lines.append(floor)
    return "\n".join(lines)
