"""Studies decoded once: lossless, memory-mapped, addressed by content, resumable, safe under several builders.

    CACHE/objects/<key>.bin    the volumes of one study, each at an aligned offset
    CACHE/objects/<key>.json   geometry, windows, problems; written after the volumes, so it vouches for them
    CACHE/index/<study>.json   which key a study has, and the size and time of each file that it was made from

The key is a hash of the bytes of the study's files, of its series' descriptions and of the decoding code. Unchanged
files are recognised by size and time without being read. Every file is renamed into place when whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lumbar.dicom import Stack
from lumbar.errors import CohortError
from lumbar.io.progress import Progress
from lumbar.study import Study, read_study
from lumbar_train.data.code_key import code_key
from lumbar_train.data.volumes import CompactVolume, compact, write_aligned
from lumbar_train.engine.interrupts import end_if_time_is_up
from lumbar_train.engine.process_pool import processes
from lumbar_train.errors import TrainingError
from lumbar_train.files import atomic_file, write_text

_FORMAT = 1
_OPEN_STUDIES = 64  # memory maps held open by one process; each holds a file descriptor
_STALE_SECONDS = 3600.0  # a temporary file older than this belongs to a builder that was killed


@dataclass(frozen=True)
class _Job:
    """What a worker needs to cache one study."""

    folder: Path
    root: Path
    split: str
    study_id: int
    series: pd.DataFrame
    signature: list[list[Any]]


class Cache:
    """Reads what ``build_cache`` left. Cheap to pickle: worker processes open their own maps."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._open: OrderedDict[int, Study] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_open": OrderedDict()}

    def __contains__(self, study_id: int) -> bool:
        return _index_path(self.folder, study_id).is_file()

    def study(self, study_id: int) -> Study:
        """The study as ``lumbar.study.read_study`` gives it: equal arrays (read-only), geometry, windows, problems.

        The same object may be given again: do not change it.

        Raises:
            CohortError: the study is not cached, or its object is damaged.
        """
        study_id = int(study_id)
        if study_id in self._open:
            self._open.move_to_end(study_id)
            return self._open[study_id]
        index = _load(_index_path(self.folder, study_id))
        if index is None:
            raise CohortError(f"{self.folder}: study {study_id} is not cached, expected it built before training")
        study = _open_study(self.folder, index["key"])
        self._open[study_id] = study
        if len(self._open) > _OPEN_STUDIES:
            self._open.popitem(last=False)
        return study

    def digest(self, study_id: int) -> str:
        """sha256 of a study's decoded volumes, as noted when they were written.

        Raises:
            CohortError: the study is not cached.
        """
        index = _load(_index_path(self.folder, study_id))
        content = _load(_object_path(self.folder, index["key"], ".json")) if index else None
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
            key = json.loads(_index_path(self.folder, study_id).read_text())["key"]
            path = _object_path(self.folder, key, ".bin")
            expected = json.loads(path.with_suffix(".json").read_text())["sha256"]
            digest = _hash_file(path)
            if digest != expected:
                raise CohortError(f"{path}: study {study_id} has sha256 {digest[:12]}, expected {expected[:12]}")


def build_cache(
    folder: Path | str,
    root: Path | str,
    split: str,
    series: pd.DataFrame,
    *,
    workers: int = 0,
    progress: bool = True,
) -> Cache:
    """Decode what is not cached yet; studies already there and unchanged cost a look at their files.

    Args:
        folder: where the cache lies or shall lie; several builds may run on it at once.
        root: competition folder.
        split: ``train`` or ``test``.
        series: ``study_id, series_id, series_description`` of the studies to cache.
        workers: processes; 0 decodes in this one.
        progress: show how many studies are decoded, and when all will be.

    Raises:
        TrainingError: the disk is full or not writable; what was cached stays good, and the next build goes on.
    """
    folder, root = Path(folder), Path(root)
    _remove_stale(folder)
    jobs = [
        _Job(folder, root, split, study_id, rows, _signature(root, split, study_id, rows))
        for study_id, rows in ((int(str(key)), rows) for key, rows in series.groupby("study_id", sort=True))
    ]
    todo = [job for job in jobs if not _is_fresh(job)]
    n_done = len(jobs) - len(todo)
    # What was there already is not counted: the pace shall tell of decoding.
    with Progress(len(todo), "study", is_shown=progress and bool(todo)) as shown:
        try:
            for n_decoded, _ in enumerate(_run(todo, workers), 1):
                n_done += 1
                shown.update(n_decoded)
                end_if_time_is_up()
        except TrainingError as error:
            raise TrainingError(
                f"{error}; {n_done} of {len(jobs)} studies are cached, the next build goes on"
            ) from error
    return Cache(folder)


def _run(jobs: list[_Job], workers: int) -> Iterator[_Job]:
    """Yield each job when it is done; few are handed out ahead, so that an error ends the build soon."""
    if workers < 1:
        for job in jobs:
            _build(job)
            yield job
        return
    left = iter(jobs)
    with processes(workers) as pool:
        running: dict[Future[None], _Job] = {pool.submit(_build, job): job for job in islice(left, 2 * workers)}
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                future.result()
                yield job
                running |= {pool.submit(_build, job): job for job in islice(left, 1)}


def _build(job: _Job) -> None:
    key = _content_key(job)
    if not _is_whole(job.folder, key):
        study = read_study(job.root, job.split, job.study_id, job.series, workers=1)
        _write_study(job.folder, key, study)
    index = {"study_id": job.study_id, "key": key, "label": _label(job), "files": job.signature}
    write_text(_index_path(job.folder, job.study_id), json.dumps(index), sync="file")


def _write_study(folder: Path, key: str, study: Study) -> None:
    path = _object_path(folder, key, ".bin")
    described = []
    with atomic_file(path, sync="file") as file:  # a lost entry costs one decoding, so the folder is not flushed
        for description, stacks in study.series.items():
            described.append({"description": description, "stacks": [_write_stack(file, s) for s in stacks]})
        n_bytes = file.tell()
    ids = dict.fromkeys(stack.series_id for stacks in study.series.values() for stack in stacks)
    content = {
        "format": _FORMAT,
        "study_id": study.study_id,
        "bytes": n_bytes,
        "sha256": _hash_file(path),
        "problems": study.problems,
        "windows": {series_id: study.window(series_id) for series_id in ids},
        "series": described,
    }
    write_text(path.with_suffix(".json"), json.dumps(content), sync="file")


def _write_stack(file: Any, stack: Stack) -> dict[str, Any]:
    stored = compact(stack.volume)
    offset = write_aligned(file, stored)
    rest = {f.name: _encode(getattr(stack, f.name)) for f in fields(stack) if f.init and f.name != "volume"}
    return {"offset": offset, "shape": stored.shape, "dtype": stored.dtype.str, "fields": rest}


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"array": value.tolist(), "dtype": value.dtype.str, "shape": value.shape}
    return value.item() if isinstance(value, np.generic) else value


def _decode(value: Any) -> Any:
    if isinstance(value, dict) and "array" in value:
        return np.array(value["array"], dtype=value["dtype"]).reshape(value["shape"])
    return value


def _open_study(folder: Path, key: str) -> Study:
    path = _object_path(folder, key, ".bin")
    content = _load(path.with_suffix(".json"))
    if content is None or not _is_whole(folder, key):
        raise CohortError(f"{path}: damaged or absent, expected a whole object; build the cache again")
    data = np.memmap(path, dtype=np.uint8, mode="r") if content["bytes"] else np.zeros(0, np.uint8)
    series = {s["description"]: [_open_stack(data, entry) for entry in s["stacks"]] for s in content["series"]}
    study = Study(study_id=content["study_id"], series=series, problems=content["problems"])
    study._windows.update({series_id: (low, high) for series_id, (low, high) in content["windows"].items()})
    return study


def _open_stack(data: np.ndarray, entry: dict[str, Any]) -> Stack:
    dtype = np.dtype(entry["dtype"])
    n_bytes = dtype.itemsize * int(np.prod(entry["shape"]))
    stored = data[entry["offset"] : entry["offset"] + n_bytes].view(dtype).reshape(entry["shape"])
    volume: Any = stored if dtype == np.float32 else CompactVolume(stored)
    return Stack(volume=volume, **{name: _decode(value) for name, value in entry["fields"].items()})


def _is_whole(folder: Path, key: str) -> bool:
    path = _object_path(folder, key, ".bin")
    content = _load(path.with_suffix(".json"))
    if content is None or content.get("format") != _FORMAT:
        return False
    try:
        return path.stat().st_size == int(content["bytes"])
    except OSError:
        return False


def _is_fresh(job: _Job) -> bool:
    index = _load(_index_path(job.folder, job.study_id))
    if index is None or index.get("label") != _label(job) or index.get("files") != job.signature:
        return False
    return _is_whole(job.folder, index["key"])


def _label(job: _Job) -> str:
    """Everything about a study's object but its files' bytes: who reads, and what the series are."""
    rows = job.series[["series_id", "series_description"]].astype(str).to_numpy().tolist()
    return hashlib.sha256(json.dumps([_FORMAT, code_key("lumbar.study"), job.study_id, rows]).encode()).hexdigest()


def _content_key(job: _Job) -> str:
    digest = hashlib.sha256(_label(job).encode())
    folder = job.root / f"{job.split}_images" / str(job.study_id)
    for name, _, _ in job.signature:
        digest.update(f"{name}\0{_hash_file(folder / name)}\0".encode())
    return digest.hexdigest()


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


def _hash_file(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CohortError(f"{path}: cannot be read ({error.strerror})") from error


def _load(path: Path) -> Any:
    """A JSON file's content, or None where it is absent or damaged."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _object_path(folder: Path, key: str, suffix: str) -> Path:
    return folder / "objects" / key[:2] / f"{key}{suffix}"


def _index_path(folder: Path, study_id: int) -> Path:
    return folder / "index" / f"{int(study_id)}.json"


def _remove_stale(folder: Path) -> None:
    for path in [*folder.glob("index/.tmp-*"), *folder.glob("objects/*/.tmp-*")]:
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()
