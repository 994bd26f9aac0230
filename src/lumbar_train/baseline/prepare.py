"""Converts series to 8-bit PNG once, in batches of studies and with a pool of threads.

WORK/images/<study>/<series>/<instance>.png   lossless, size × size
WORK/batches/<k>.json                         record of a batch: its images, settings and source files; written last
WORK/images.csv, WORK/images.npy              all images: the table, and the pixels as one array in the same order
WORK/images.json                              key of that array, so that it is made again when the table changes
WORK/{column}_image_paths_labels.csv          one row per image that has a label in the column
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lumbar.chains.baseline import read
from lumbar.errors import CohortError, LumbarError
from lumbar.io.progress import Progress
from lumbar.io.tables import csv_text
from lumbar.io.text import one_line, study_text
from lumbar.labels import COLUMNS, SEVERITIES
from lumbar.stages.eight_bit import choose_slices, eight_bit
from lumbar_train.data.code_key import code_key
from lumbar_train.errors import TrainingError
from lumbar_train.files import read_object, write_bytes, write_text, write_with

TABLE = ["study_id", "series_id", "instance_number", "image_path", "pixels"]
_PROBLEMS_SHOWN = 5


@dataclass(frozen=True)
class Images:
    """The converted slices of a cohort.

    Attributes:
        table: one row per image: ``study_id, series_id, instance_number, image_path``, and ``pixels``, a hash of the
            pixels that tells copies (empty for an image of one single value).
        pixels: (N, size, size) uint8 in the same order, mapped from disk.
        problems: one line for each study or slice that could not be read.
    """

    table: pd.DataFrame
    pixels: NDArray[np.uint8]
    problems: list[str]


def prepare(
    work: Path,
    root: Path,
    split: str,
    series: pd.DataFrame,
    *,
    description: str,
    size: int,
    slices: int,
    batch: int = 100,
    start_batch: int = 0,
    threads: int | None = None,
    progress: bool = True,
) -> Images:
    """Convert the slices that are not yet converted.

    Args:
        work: folder to fill; batches that are complete and made of the same files are kept.
        root: competition folder.
        split: train or test.
        series: ``study_id, series_id, series_description``.
        description: of the series to convert.
        size: height and width in pixels, as in ``lumbar.stages.eight_bit``.
        slices: central slices of each series, 0 for all.
        batch: studies per batch.
        start_batch: batches before this one are trusted without a look at their files.
        threads: of the pool; None for one per core.
        progress: say how far it has come.

    Raises:
        CohortError: there is no series of the description or no readable slice, or an earlier batch is missing.
        TrainingError: the disk is full.
    """
    by_study = _series_by_study(root, series, description)
    n_series = sum(map(len, by_study.values()))
    batches = _batches(sorted(by_study), batch, start_batch)
    settings = {"description": description, "size": size, "slices": slices, "split": split, "code": _code()}
    paths = [work / "batches" / f"{k:04d}.json" for k in range(len(batches))]
    identities: list[dict[str, Any]] = [settings | {"studies": study_ids} for study_ids in batches]
    for identity, study_ids in zip(identities[start_batch:], batches[start_batch:], strict=True):
        identity["files"] = _signature(root, split, [by_study[study_id] for study_id in study_ids])
    records = _kept_records(paths, identities, start_batch)
    # What is converted already is not counted: the pace is that of converting.
    todo = [k for k, path in enumerate(paths) if records[path] is None]
    n_todo = sum(len(batches[k]) for k in todo)
    with (
        ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool,
        Progress(n_todo, "study", title=f"8-bit {split}", is_shown=progress) as shown,
    ):
        for k in todo:
            rows = {study_id: by_study[study_id] for study_id in batches[k]}
            record = _convert_batch(pool, shown, work, root, rows, settings) | {"identity": identities[k]}
            write_text(paths[k], json.dumps(record))
            records[paths[k]] = record
    every = [record for record in records.values() if record is not None]
    return _gather(work, every, size, f"{root}: no readable slice in {n_series} series described as {description!r}")


def _kept_records(
    paths: list[Path], identities: list[dict[str, Any]], start_batch: int
) -> dict[Path, dict[str, Any] | None]:
    """The records that hold, by their files; None for a batch to be converted.

    Raises:
        CohortError: a batch that is to be trusted has none.
    """
    records = {path: _valid_record(path, identity) for path, identity in zip(paths, identities, strict=True)}
    for path in paths[:start_batch]:
        if records[path] is None:
            raise CohortError(
                f"{path}: found no record of these settings, expected one before --start-batch {start_batch}"
            )
    return records


def _code() -> str:
    """Hash of the code that turns files into pixels."""
    return code_key("lumbar.study", "lumbar.stages.eight_bit")


def _series_by_study(root: Path, series: pd.DataFrame, description: str) -> dict[int, pd.DataFrame]:
    rows = series[series["series_description"] == description]
    if not len(rows):
        others = ", ".join(sorted(set(series["series_description"]))) or "none"
        raise CohortError(f"{root}: found series described as {others}, expected some described as {description!r}")
    return {int(group["study_id"].iloc[0]): group for _, group in rows.groupby("study_id")}


def _batches(study_ids: list[int], batch: int, start_batch: int) -> list[list[int]]:
    batches = [study_ids[start : start + batch] for start in range(0, len(study_ids), batch)]
    if not 0 <= start_batch <= len(batches):
        raise CohortError(f"--start-batch: found {start_batch}, expected 0 to {len(batches)}, the number of batches")
    return batches


def _convert_batch(
    pool: ThreadPoolExecutor,
    shown: Progress,
    work: Path,
    root: Path,
    by_study: dict[int, pd.DataFrame],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Convert a batch of studies; returns the rows of its images and its problems."""
    jobs = [pool.submit(_convert, work, root, study_id, rows, settings) for study_id, rows in by_study.items()]
    record: dict[str, Any] = {"images": [], "problems": []}
    for job in jobs:
        images, problems = job.result()
        record["images"] += images
        record["problems"] += problems
        shown.update(shown.n_done + 1)
    return record


def _convert(
    work: Path, root: Path, study_id: int, rows: pd.DataFrame, settings: dict[str, Any]
) -> tuple[list[list[Any]], list[str]]:
    """Convert one study; returns the rows of its images, and a line for each problem."""
    split = settings["split"]
    try:
        study = read((settings["description"],), root, split, study_id, rows, 1)
    except LumbarError as error:
        return [], [one_line(error, study_text(root, split, study_id))]
    images: list[list[Any]] = []
    for chosen in choose_slices(study, settings["description"], settings["slices"]):
        pixels = eight_bit(study, chosen, settings["size"])
        place = f"images/{study_id}/{chosen.series_id}/{chosen.name}.png"
        _write_png(work / place, pixels)
        digest = hashlib.blake2b(pixels.tobytes(), digest_size=12).hexdigest() if pixels.min() < pixels.max() else ""
        images.append([study_id, int(chosen.series_id), chosen.instance_number, place, digest])
    return images, study.problems


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a PNG whole or not at all. Only the record of the batch is flushed to disk, after all its images."""
    is_encoded, data = cv2.imencode(".png", pixels)
    if not is_encoded:
        raise TrainingError(f"{path}: OpenCV cannot encode {pixels.shape} as PNG")
    write_bytes(path, data.tobytes(), sync="none")


def _valid_record(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """A batch's record if it has this identity and its images are still there; else None."""
    record = read_object(path)
    recorded, images, problems = (record.get(name) for name in ("identity", "images", "problems"))
    if not (isinstance(recorded, dict) and isinstance(images, list) and isinstance(problems, list)):
        return None
    if {name: recorded.get(name) for name in identity} != json.loads(json.dumps(identity)):
        return None
    work = path.parent.parent
    is_complete = all(
        isinstance(row, list) and len(row) == len(TABLE) and (work / str(row[3])).is_file() for row in images
    )
    return record if is_complete else None


def _signature(root: Path, split: str, studies: list[pd.DataFrame]) -> str:
    """Hash of name, size and time of each file of a batch; a batch with a changed file is converted again."""
    digest = hashlib.sha256()
    for rows in studies:
        for study_id, series_id in sorted(zip(rows["study_id"], rows["series_id"], strict=True)):
            folder = root / f"{split}_images" / str(study_id) / str(series_id)
            digest.update(f"{study_id}/{series_id}\0".encode())
            if folder.is_dir():
                with os.scandir(folder) as entries:
                    for name, stat in sorted((entry.name, entry.stat()) for entry in entries):
                        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _gather(work: Path, records: list[dict[str, Any]], size: int, none_found: str) -> Images:
    """The images of all batches; their pixels are packed into one array once, and mapped afterwards."""
    problems = [line for record in records for line in record["problems"]]
    table = pd.DataFrame([image for record in records for image in record["images"]], columns=TABLE)
    if not len(table):
        raise CohortError(f"{none_found}{f' ({problems[0]})' if problems else ''}, expected some")
    key = hashlib.sha256(f"{size}\0{table.to_csv(index=False)}".encode()).hexdigest()
    path, key_file = work / "images.npy", work / "images.json"
    if not (path.is_file() and read_object(key_file).get("key") == key):
        key_file.unlink(missing_ok=True)
        write_with(path, lambda file: _pack(file, work, table, size))
        write_text(work / "images.csv", csv_text(table))
        write_text(key_file, json.dumps({"key": key}))
    return Images(table, np.load(path, mmap_mode="r"), problems)


def _pack(file: Any, work: Path, table: pd.DataFrame, size: int) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(table), size, size)}
    np.lib.format.write_array_header_1_0(file, header)
    for place in table["image_path"]:
        pixels = cv2.imread(str(work / place), cv2.IMREAD_GRAYSCALE)
        if pixels is None or pixels.shape != (size, size):
            raise TrainingError(f"{work / place}: damaged, expected a PNG of {size} x {size}; delete it and resume")
        file.write(np.ascontiguousarray(pixels).tobytes())


def write_label_tables(
    work: Path, images: Images, labels: NDArray[np.int8], study_ids: NDArray[np.int64], columns: list[str]
) -> None:
    """Write ``{column}_image_paths_labels.csv`` for each column: the images whose study has a label there."""
    row_of = {int(study): k for k, study in enumerate(study_ids)}
    rows = np.array([row_of[int(study)] for study in images.table["study_id"]])
    base = images.table[["study_id", "series_id", "instance_number", "image_path"]]
    for column in columns:
        grades = labels[rows, COLUMNS.index(column)]
        table = base[grades >= 0].assign(label=[SEVERITIES[g] for g in grades[grades >= 0]])
        write_text(work / f"{column}_image_paths_labels.csv", csv_text(table))


def describe_problems(problems: list[str]) -> list[str]:
    """The first lines, and how many more there are."""
    shown = problems[:_PROBLEMS_SHOWN]
    return shown + ([f"and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else [])
