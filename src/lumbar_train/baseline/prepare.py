"""Series to 8-bit PNG, once: in batches of studies and a thread pool, each batch vouched for by its record.

WORK/images/<study>/<series>/<instance>.png   lossless, size × size
WORK/batches/<k>.json                         what a batch made, and of what; written last
WORK/images.csv, WORK/images.npy              all of them: the table, and the pixels as one array in its order
WORK/{column}_image_paths_labels.csv          a row an image that has a label in the column
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
from tqdm import tqdm

from lumbar.chains.baseline import read
from lumbar.errors import CohortError, LumbarError
from lumbar.io.tables import csv_text
from lumbar.io.text import one_line, study_text
from lumbar.labels import COLUMNS, SEVERITIES
from lumbar.stages.eight_bit import choose_slices, eight_bit
from lumbar_train.data.code_key import code_key
from lumbar_train.errors import TrainingError
from lumbar_train.files import write_bytes, write_text, write_with

TABLE = ["study_id", "series_id", "instance_number", "image_path", "pixels"]
_PROBLEMS_SHOWN = 5


@dataclass(frozen=True)
class Images:
    """The converted slices of a cohort.

    Attributes:
        table: a row an image: ``study_id, series_id, instance_number, image_path``, and ``pixels``, a hash of the
            picture by which copies are known (empty for a picture of one single value, which says nothing).
        pixels: (N, size, size) uint8 in the same order, mapped from disk.
        problems: lines.
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
    """Convert what is not converted yet.

    Args:
        work: folder to fill; batches that are there, whole and of the same files, are kept.
        root: competition folder.
        split: which images.
        series: ``study_id, series_id, series_description``.
        description: which series.
        size, slices: as in ``lumbar.stages.eight_bit``.
        batch: studies a batch.
        start_batch: batches before this one are taken as they are, without a look at their files.
        threads: of the pool; None for one a core.
        progress: show a bar.

    Raises:
        CohortError: no series of the description, no readable slice at all, an earlier batch that is not there.
        TrainingError: the disk is full.
    """
    rows = series[series["series_description"] == description]
    if not len(rows):
        found = ", ".join(sorted(set(series["series_description"]))) or "none"
        raise CohortError(f"{root}: found no series described as {description!r}, expected some; found {found}")
    study_ids = sorted(map(int, rows["study_id"].unique()))
    pieces = [study_ids[start : start + batch] for start in range(0, len(study_ids), batch)]
    if not 0 <= start_batch <= len(pieces):
        raise CohortError(f"--start-batch: found {start_batch}, expected 0 to {len(pieces)}, the number of batches")
    by_study = dict(list(rows.groupby("study_id")))
    code = code_key("lumbar.study", "lumbar.stages.eight_bit")
    what = {"description": description, "size": size, "slices": slices, "split": split, "code": code}
    records = []
    with (
        ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool,
        tqdm(total=len(study_ids), desc=f"8-bit {split}", unit="study", disable=not progress) as bar,
    ):
        for k, ids in enumerate(pieces):
            path = work / "batches" / f"{k:04d}.json"
            identity = what | {"studies": ids}
            if k >= start_batch:
                identity["files"] = _signature(root, split, [by_study[i] for i in ids])
            record = _kept(path, identity)
            if record is None and k < start_batch:
                raise CohortError(
                    f"{path}: not there or of other settings, expected it to be done before --start-batch {start_batch}"
                )
            if record is None:
                jobs = [pool.submit(_convert, work, root, split, i, by_study[i], what) for i in ids]
                record = {"identity": identity, "images": [], "problems": []}
                for job in jobs:
                    images, problems = job.result()
                    record["images"] += images
                    record["problems"] += problems
                    bar.update()
                write_text(path, json.dumps(record))
            else:
                bar.update(len(ids))
            records.append(record)
    return _gather(work, records, size, f"{root}: no readable slice in {len(rows)} series described as {description!r}")


def _convert(
    work: Path, root: Path, split: str, study_id: int, rows: pd.DataFrame, what: dict[str, Any]
) -> tuple[list[list[Any]], list[str]]:
    """One study's slices as PNG; what cannot be read is a line, not an end."""
    try:
        study = read((what["description"],), root, split, study_id, rows, 1)
    except LumbarError as error:
        return [], [one_line(error, study_text(root, split, study_id))]
    images: list[list[Any]] = []
    for chosen in choose_slices(study, what["description"], what["slices"]):
        pixels = eight_bit(study, chosen, what["size"])
        place = f"images/{study_id}/{chosen.series_id}/{chosen.name}.png"
        _write_png(work / place, pixels)
        digest = hashlib.blake2b(pixels.tobytes(), digest_size=12).hexdigest() if pixels.min() < pixels.max() else ""
        images.append([study_id, int(chosen.series_id), chosen.instance_number, place, digest])
    return images, study.problems


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Whole or absent; not flushed one by one, because the batch's record vouches for all."""
    is_encoded, data = cv2.imencode(".png", pixels)
    if not is_encoded:
        raise TrainingError(f"{path}: OpenCV cannot encode {pixels.shape} as PNG")
    write_bytes(path, data.tobytes(), sync="none")


def _kept(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """A batch's record if it says what is wanted and its images are still there."""
    try:
        record: dict[str, Any] = json.loads(path.read_text("utf-8"))
        found = {name: record["identity"].get(name) for name in identity}
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    if found != json.loads(json.dumps(identity)):
        return None
    work = path.parent.parent
    return record if all((work / image[3]).is_file() for image in record["images"]) else None


def _signature(root: Path, split: str, studies: list[pd.DataFrame]) -> str:
    """Hash over name, size and time of each file of the batch: a changed study is converted anew."""
    digest = hashlib.sha256()
    for rows in studies:
        for study_id, series_id in sorted(zip(rows["study_id"], rows["series_id"], strict=True)):
            folder = root / f"{split}_images" / str(study_id) / str(series_id)
            digest.update(f"{study_id}/{series_id}\0".encode())
            if folder.is_dir():
                with os.scandir(folder) as items:
                    for name, stat in sorted((item.name, item.stat()) for item in items):
                        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _gather(work: Path, records: list[dict[str, Any]], size: int, none_found: str) -> Images:
    """The table of all batches and their pixels as one array, made once and mapped afterwards."""
    problems = [line for record in records for line in record["problems"]]
    table = pd.DataFrame([image for record in records for image in record["images"]], columns=TABLE)
    if not len(table):
        raise CohortError(f"{none_found}{f' ({problems[0]})' if problems else ''}, expected some")
    key = hashlib.sha256(f"{size}\0{table.to_csv(index=False)}".encode()).hexdigest()
    path, vouched = work / "images.npy", work / "images.json"
    if not (path.is_file() and vouched.is_file() and json.loads(vouched.read_text("utf-8")).get("key") == key):
        vouched.unlink(missing_ok=True)
        write_with(path, lambda file: _pack(file, work, table, size))
        write_text(work / "images.csv", csv_text(table))
        write_text(vouched, json.dumps({"key": key}))
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
    """``{column}_image_paths_labels.csv`` for each column, of the images whose study has a label there."""
    row_of = {int(study): k for k, study in enumerate(study_ids)}
    rows = np.array([row_of[int(study)] for study in images.table["study_id"]])
    base = images.table[["study_id", "series_id", "instance_number", "image_path"]]
    for column in columns:
        grades = labels[rows, COLUMNS.index(column)]
        table = base[grades >= 0].assign(label=[SEVERITIES[g] for g in grades[grades >= 0]])
        write_text(work / f"{column}_image_paths_labels.csv", csv_text(table))


def describe_problems(problems: list[str]) -> list[str]:
    """The first lines of many."""
    shown = problems[:_PROBLEMS_SHOWN]
    return shown + ([f"and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else [])
