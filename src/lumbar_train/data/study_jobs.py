"""Work on each study of a cohort, by processes; and what tells whether its files are those of an earlier time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from lumbar.errors import CohortError
from lumbar_train.data.code_key import code_key
from lumbar_train.engine.process_pool import processes

FORMAT = 1  # of what is written about a study


@dataclass(frozen=True)
class StudyJob:
    """A study to work on, in a form that can be sent to a process.

    Attributes:
        folder: where the result goes.
        root: competition folder.
        split: ``train`` or ``test``.
        study_id: which study.
        series: ``study_id, series_id, series_description`` of its series.
        signature: of its files.
    """

    folder: Path
    root: Path
    split: str
    study_id: int
    series: pd.DataFrame
    signature: list[list[Any]]

    @property
    def images(self) -> Path:
        """The folder of the study's series."""
        return self.root / f"{self.split}_images" / str(self.study_id)


def study_jobs(folder: Path, root: Path, split: str, series: pd.DataFrame) -> list[StudyJob]:
    """One job for each study of a table of series."""
    groups = ((int(str(key)), rows) for key, rows in series.groupby("study_id", sort=True))
    return [StudyJob(folder, root, split, k, rows, _signature(root, split, k, rows)) for k, rows in groups]


def run_jobs(work: Callable[[StudyJob], Any], jobs: list[StudyJob], workers: int) -> Iterator[tuple[StudyJob, Any]]:
    """Yield each job with its result; few are handed out ahead, so that an error ends the work soon.

    Args:
        work: a function that a module holds by name.
        jobs: one for each study.
        workers: processes; 0 works in this one.
    """
    if workers < 1:
        for job in jobs:
            yield job, work(job)
        return
    left = iter(jobs)
    with processes(workers) as pool:
        running: dict[Future[Any], StudyJob] = {pool.submit(work, job): job for job in islice(left, 2 * workers)}
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                yield job, future.result()
                running |= {pool.submit(work, job): job for job in islice(left, 1)}


def label_of(job: StudyJob) -> str:
    """Everything that decides what is read from a study's files but their bytes: the code, and what the series are."""
    rows = job.series[["series_id", "series_description"]].astype(str).to_numpy().tolist()
    return hashlib.sha256(json.dumps([FORMAT, code_key("lumbar.study"), job.study_id, rows]).encode()).hexdigest()


def content_key(job: StudyJob) -> str:
    """A hash of the bytes of the study's files, of what its series are, and of the code that reads them."""
    digest = hashlib.sha256(label_of(job).encode())
    for name, _, _ in job.signature:
        digest.update(f"{name}\0{hash_file(job.images / name)}\0".encode())
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of a file.

    Raises:
        CohortError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CohortError(f"{path}: cannot be read ({error.strerror})") from error


def _signature(root: Path, split: str, study_id: int, rows: pd.DataFrame) -> list[list[Any]]:
    """``[name, bytes, time]`` of each file of the study's series, sorted."""
    slices = []
    for series_id in sorted(set(rows["series_id"])):
        with (
            suppress(FileNotFoundError),
            os.scandir(root / f"{split}_images" / str(study_id) / str(series_id)) as entries,
        ):
            for entry in entries:
                if entry.name.lower().endswith(".dcm") and not entry.name.startswith("."):
                    stat = entry.stat()
                    slices.append([f"{series_id}/{entry.name}", stat.st_size, stat.st_mtime_ns])
    return sorted(slices)
