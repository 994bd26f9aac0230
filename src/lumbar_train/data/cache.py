"""Studies decoded once: lossless, memory-mapped, addressed by content, resumable, safe under several builders.

    CACHE/objects/<key>.bin    the volumes of one study, each at an aligned offset
    CACHE/objects/<key>.json   geometry, windows, problems; written after the volumes, so it vouches for them
    CACHE/index/<study>.json   which key a study has, and the size and time of each file that it was made from

The key is a hash of the bytes of the study's files, of its series' descriptions and of the decoding code. Unchanged
files are recognised by size and time without being read. Every file is renamed into place when whole.

A cache on a read-only mount is used as it is: where times differ (on another machine they do) the files are read and
their content decides, and what that gave is noted in a folder beside, which then takes the place of ``CACHE/index``.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lumbar.dicom import Stack
from lumbar.errors import CohortError
from lumbar.io.progress import Progress
from lumbar.study import Study, read_study
from lumbar_train.data.studies import OpenStudies
from lumbar_train.data.study_jobs import FORMAT, StudyJob, content_key, hash_file, label_of, run_jobs, study_jobs
from lumbar_train.data.study_record import StackRecord, record_of, study_of
from lumbar_train.data.volumes import CompactVolume, compact, write_aligned
from lumbar_train.engine.interrupts import end_if_time_is_up
from lumbar_train.errors import TrainingError
from lumbar_train.files import atomic_file, write_text

NOTES = "cache-index"  # of a run folder: where a read-only cache's index goes
_STALE_SECONDS = 3600.0  # a temporary file older than this belongs to a builder that was killed


class Cache(OpenStudies):
    """Reads what ``build_cache`` left. Cheap to pickle: worker processes open their own maps.

    Args:
        folder: the cache.
        index: the folder of its index, where that is another than ``folder/index``.
    """

    def __init__(self, folder: Path | str, index: Path | None = None) -> None:
        self.folder = Path(folder)
        self.index = index or self.folder / "index"
        super().__init__()

    def __contains__(self, study_id: int) -> bool:
        return _index_path(self.index, study_id).is_file()

    def _read(self, study_id: int) -> Study:
        return _open_study(self.folder, self._key(study_id))

    def digest(self, study_id: int) -> str:
        """sha256 of a study's decoded volumes, as noted when they were written.

        Raises:
            CohortError: the study is not cached.
        """
        content = _load(_object_path(self.folder, self._key(study_id), ".json"))
        if content is None:
            raise CohortError(f"{self.folder}: study {study_id} is not cached, expected it built before training")
        return str(content["sha256"])

    def verify(self, study_ids: Iterable[int]) -> None:
        """Compare every object's bytes with the hash that was taken when it was written.

        Raises:
            CohortError: naming the first object that differs.
        """
        for study_id in study_ids:
            self.study(study_id)
            path, expected = _object_path(self.folder, self._key(study_id), ".bin"), self.digest(study_id)
            digest = hash_file(path)
            if digest != expected:
                raise CohortError(f"{path}: study {study_id} has sha256 {digest[:12]}, expected {expected[:12]}")

    def _key(self, study_id: int) -> str:
        index = _load(_index_path(self.index, study_id))
        if index is None:
            raise CohortError(f"{self.folder}: study {study_id} is not cached, expected it built before training")
        return str(index["key"])


def build_cache(
    folder: Path | str,
    root: Path | str,
    split: str,
    series: pd.DataFrame,
    *,
    workers: int = 0,
    progress: bool = True,
    notes: Path | None = None,
) -> Cache:
    """Decode what is not cached yet; studies already there and unchanged cost a look at their files.

    Args:
        folder: where the cache lies or shall lie; several builds may run on it at once.
        root: competition folder.
        split: ``train`` or ``test``.
        series: ``study_id, series_id, series_description`` of the studies to cache.
        workers: processes; 0 decodes in this one.
        progress: show how many studies are decoded, and when all will be.
        notes: where to note what a cache that cannot be written holds; nothing is written into the cache then.

    Raises:
        TrainingError: the disk is full or not writable; what was cached stays good, and the next build goes on.
        CohortError: the cache cannot be written and does not hold every study.
    """
    folder, root = Path(folder), Path(root)
    jobs = study_jobs(folder, root, split, series)
    if notes is not None and holds_studies(folder) and not can_write(folder):
        _recognise(jobs, folder, notes, workers, progress=progress)
        return Cache(folder, notes)
    _remove_stale(folder)
    todo = [job for job in jobs if not _is_fresh(job, folder / "index")]
    n_done = len(jobs) - len(todo)
    # What was there already is not counted: the pace shall tell of decoding.
    with Progress(len(todo), "study", is_shown=progress and bool(todo)) as shown:
        try:
            for n_decoded, _ in enumerate(run_jobs(_build, todo, workers), 1):
                n_done += 1
                shown.update(n_decoded)
                end_if_time_is_up()
        except TrainingError as error:
            raise TrainingError(
                f"{error}; {n_done} of {len(jobs)} studies are cached, the next build goes on"
            ) from error
    return Cache(folder)


def holds_studies(folder: Path) -> bool:
    """Whether a folder is a cache that holds something."""
    return next((folder / "objects").glob("*/*.bin"), None) is not None


def can_write(folder: Path) -> bool:
    """Whether a cache's folder can be written, as far as the system tells; of one that is not there, the next above."""
    inner = [folder / name for name in ("index", "objects") if (folder / name).is_dir()]
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return all(os.access(path, os.W_OK | os.X_OK) for path in (above, *inner))


def _recognise(jobs: list[StudyJob], folder: Path, notes: Path, workers: int, *, progress: bool) -> None:
    """Note which objects of a cache that cannot be written are the studies', by the content of their files."""
    missing, todo = [], []
    for job in (job for job in jobs if not _is_fresh(job, notes)):
        if _is_fresh(job, folder / "index"):
            _write_index(notes, job, _load(_index_path(folder / "index", job.study_id))["key"])
        else:
            todo.append(job)
    with Progress(len(todo), "study", is_shown=progress and bool(todo)) as shown:
        for n_read, (job, key) in enumerate(run_jobs(content_key, todo, workers), 1):
            if _is_whole(folder, key):
                _write_index(notes, job, key)
            else:
                missing.append(job.study_id)
            shown.update(n_read)
            end_if_time_is_up()
    if missing:
        raise CohortError(
            f"{folder}: found {len(jobs) - len(missing)} of {len(jobs)} studies (not {min(missing)}, for one) in a "
            "cache that cannot be written, expected all, decoded by this version from the same files; "
            "use another --cache, or none"
        )


def _build(job: StudyJob) -> None:
    key = content_key(job)
    if not _is_whole(job.folder, key):
        study = read_study(job.root, job.split, job.study_id, job.series, workers=1)
        _write_study(job.folder, key, study)
    _write_index(job.folder / "index", job, key)


def _write_index(folder: Path, job: StudyJob, key: str) -> None:
    index = {"study_id": job.study_id, "key": key, "label": label_of(job), "files": job.signature}
    write_text(_index_path(folder, job.study_id), json.dumps(index), sync="file")


def _write_study(folder: Path, key: str, study: Study) -> None:
    path = _object_path(folder, key, ".bin")
    with atomic_file(path, sync="file") as file:  # a lost entry costs one decoding, so the folder is not flushed
        record = record_of(study, partial(_write_stack, file))
        n_bytes = file.tell()
    content = {"format": FORMAT, "bytes": n_bytes, "sha256": hash_file(path)} | record
    write_text(path.with_suffix(".json"), json.dumps(content), sync="file")


def _write_stack(file: Any, stack: Stack) -> StackRecord:
    stored = compact(stack.volume)
    offset = write_aligned(file, stored)
    return {"offset": offset, "shape": stored.shape, "dtype": stored.dtype.str}


def _open_study(folder: Path, key: str) -> Study:
    path = _object_path(folder, key, ".bin")
    content = _load(path.with_suffix(".json"))
    if content is None or not _is_whole(folder, key):
        raise CohortError(f"{path}: damaged or absent, expected a whole object; build the cache again")
    data = np.memmap(path, dtype=np.uint8, mode="r") if content["bytes"] else np.zeros(0, np.uint8)
    return study_of(content, partial(_open_stack, data))


def _open_stack(data: np.ndarray, entry: StackRecord) -> Any:
    dtype = np.dtype(entry["dtype"])
    n_bytes = dtype.itemsize * int(np.prod(entry["shape"]))
    stored = data[entry["offset"] : entry["offset"] + n_bytes].view(dtype).reshape(entry["shape"])
    return stored if dtype == np.float32 else CompactVolume(stored)


def _is_whole(folder: Path, key: str) -> bool:
    path = _object_path(folder, key, ".bin")
    content = _load(path.with_suffix(".json"))
    if content is None or content.get("format") != FORMAT:
        return False
    try:
        return path.stat().st_size == int(content["bytes"])
    except OSError:
        return False


def _is_fresh(job: StudyJob, folder: Path) -> bool:
    """Whether an index knows the study with files of these names, sizes and times, and its object is whole."""
    index = _load(_index_path(folder, job.study_id))
    if index is None or index.get("label") != label_of(job) or index.get("files") != job.signature:
        return False
    return _is_whole(job.folder, index["key"])


def _load(path: Path) -> Any:
    """A JSON file's content, or None where it is absent or damaged."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _object_path(folder: Path, key: str, suffix: str) -> Path:
    return folder / "objects" / key[:2] / f"{key}{suffix}"


def _index_path(folder: Path, study_id: int) -> Path:
    return folder / f"{int(study_id)}.json"


def _remove_stale(folder: Path) -> None:
    for path in [*folder.glob("index/.tmp-*"), *folder.glob("objects/*/.tmp-*")]:
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()
