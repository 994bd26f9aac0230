"""Studies straight from the DICOM folder: slices are decoded when asked for, everything else is noted once.

    INDEX/<study>.json.gz   geometry, windows, problems, in which file each slice is; size and time of each file

To note it every study is decoded once (damaged slices show no sooner, and windows are percentiles of all pixels), and
each slice is decoded a second time as it will be later: both must be equal, bit by bit. A process keeps the slices that
it used last (``slice_memory``).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lumbar.dicom import Stack
from lumbar.dicom._scratch import reused
from lumbar.dicom.assembly.decoding import decode, make_jobs
from lumbar.dicom.assembly.images import Image, ImageFile, list_files, open_images
from lumbar.errors import CohortError
from lumbar.io.progress import Progress
from lumbar.study import Study, read_study
from lumbar_train.data.slice_memory import SliceMemory
from lumbar_train.data.studies import OpenStudies
from lumbar_train.data.study_jobs import FORMAT, StudyJob, label_of, run_jobs, study_jobs
from lumbar_train.data.study_record import StackRecord, record_of, study_of
from lumbar_train.data.volumes import LazyVolume, compact, padded
from lumbar_train.engine.interrupts import end_if_time_is_up
from lumbar_train.errors import TrainingError
from lumbar_train.files import write_bytes

FOLDER = "index"  # of a run folder
_LEVEL = 6  # of the compression
_EXPECTED = "expected the file as it was when the training began"


class DicomFolder(OpenStudies):
    """Reads the studies that ``index_studies`` noted; their volumes decode a slice when it is asked for.

    Cheap to pickle: worker processes keep slices of their own.

    Args:
        index: what ``index_studies`` left.
        root: competition folder.
        split: ``train`` or ``test``.
        memory: bytes of decoded slices that a process keeps.
    """

    def __init__(self, index: Path | str, root: Path | str, split: str, memory: int) -> None:
        self.index, self.images = Path(index), Path(root) / f"{split}_images"
        self.memory = SliceMemory(memory)
        super().__init__()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"memory": SliceMemory(self.memory.most)}

    def __contains__(self, study_id: int) -> bool:
        return _index_path(self.index, study_id).is_file()

    def _read(self, study_id: int) -> Study:
        content = self._content(study_id)
        folder = self.images / str(study_id)
        return study_of(content, lambda stack: SliceVolume(folder, content["files"], stack, self.memory))

    def digest(self, study_id: int) -> str:
        """sha256 of a study's decoded volumes, as noted in the index; the same as a cache's.

        Raises:
            CohortError: the study is not in the index.
        """
        return str(self._content(study_id)["sha256"])

    def _content(self, study_id: int) -> Any:
        content = _load(_index_path(self.index, study_id))
        if content is None:
            raise CohortError(f"{self.index}: found no study {study_id}, expected it noted before training")
        return content


class SliceVolume(LazyVolume):
    """A stack's (slices, rows, columns) float32 array, of which a slice is decoded when it is asked for.

    Args:
        folder: of the study.
        files: ``name, size, time`` of the study's files.
        stack: ``shape``, ``sources`` (file, frame or 0) of each slice, and ``signed_zeros``: whether some values are
            -0.0 that a cache, which keeps whole numbers as integers, makes 0.0.
        memory: of the process, for decoded slices.
    """

    def __init__(self, folder: Path, files: list[list[Any]], stack: StackRecord, memory: SliceMemory) -> None:
        super().__init__(tuple(stack["shape"]))
        self.folder, self.files, self.sources, self.memory = folder, files, stack["sources"], memory
        self.has_signed_zeros = stack["signed_zeros"]

    def slice(self, index: int) -> np.ndarray:
        """Slice ``index`` (rows, columns) float32, read-only.

        Raises:
            CohortError: its file has changed since it was indexed.
        """
        file, frame = self.sources[index]
        key = str(self.folder), file, frame
        kept = self.memory.get(key)
        if kept is None:
            frames = [frame] if frame == 0 else sorted({other for k, other in self.sources if k == file})
            decoded = self._decoded(file, frames)
            self.memory.put({(*key[:2], k): array for k, array in decoded.items()})
            kept = decoded[frame]
        return kept

    def _decoded(self, file: int, frames: list[int]) -> dict[int, np.ndarray]:
        """Some frames (0: the only one) of a file, (rows, columns) float32 each."""
        name, size, _ = self.files[file]
        path = self.folder / name
        images = open_images(ImageFile(str(path), path.name, 0))
        if not isinstance(images, list):
            raise CohortError(f"{path}: cannot be read any more ({images}), {_EXPECTED}")
        if images[0].size != size // len(images):
            raise CohortError(f"{path}: found another size than {size} bytes, {_EXPECTED}")
        wanted = [image for image in images if (image.frame or 0) in frames]
        decoded = {
            image.frame or 0: array
            for image, array in zip(wanted, decode_images(wanted, self.shape[1:]), strict=True)
            if array is not None
        }
        if len(decoded) < len(frames):
            raise CohortError(f"{path}: found other pixels, {_EXPECTED}")
        for array in decoded.values():
            if self.has_signed_zeros:
                array += 0.0
            array.flags.writeable = False
        return decoded


def decode_images(images: list[Image], shape: tuple[int, ...]) -> list[np.ndarray | None]:
    """Images of one file in rescaled units, (rows, columns) float32 each, as ``read_series`` decodes them.

    Returns:
        None in the place of one that cannot be decoded, or has another shape than ``shape``.
    """
    targets = [(image, np.empty(shape, np.float32)) for image in images if image.shape == shape]
    with reused():
        for job in make_jobs(targets):
            decode(job)
    good = {id(image): out for image, out in targets if not image.failure}
    return [good.get(id(image)) for image in images]


# Making the index


def index_studies(
    index: Path | str,
    root: Path | str,
    split: str,
    series: pd.DataFrame,
    *,
    workers: int = 0,
    progress: bool = True,
) -> None:
    """Note what is not noted yet; studies already there and unchanged cost a look at their files.

    Args:
        index: where the index lies or shall lie; several processes may write it at once.
        root: competition folder.
        split: ``train`` or ``test``.
        series: ``study_id, series_id, series_description`` of the studies.
        workers: processes; 0 decodes in this one.
        progress: show how many studies are read, and when all will be.

    Raises:
        TrainingError: the disk is full or not writable; what was noted stays good, and the next call goes on.
    """
    jobs = study_jobs(Path(index), Path(root), split, series)
    todo = [job for job in jobs if not _is_fresh(job)]
    n_done = len(jobs) - len(todo)
    with Progress(len(todo), "study", is_shown=progress and bool(todo)) as shown:
        try:
            for n_read, _ in enumerate(run_jobs(_index_study, todo, workers), 1):
                n_done += 1
                shown.update(n_read)
                end_if_time_is_up()
        except TrainingError as error:
            raise TrainingError(f"{error}; {n_done} of {len(jobs)} studies are noted, the next call goes on") from error


def _index_study(job: StudyJob) -> None:
    study = read_study(job.root, job.split, job.study_id, job.series, workers=1)
    numbers = {name: number for number, (name, _, _) in enumerate(job.signature)}
    digest = _Digest()
    record = record_of(study, partial(_record_stack, job.images, numbers, digest))
    content = {"format": FORMAT, "label": label_of(job), "files": job.signature, "sha256": digest.hexdigest()} | record
    data = gzip.compress(json.dumps(content).encode(), _LEVEL, mtime=0)
    write_bytes(_index_path(job.folder, job.study_id), data, sync="none")


class _Digest:
    """The hash that the file of volumes in a cache would have, without the file."""

    def __init__(self) -> None:
        self.sha256, self.size = hashlib.sha256(), 0

    def add(self, array: np.ndarray) -> None:
        """Go on with an array at its aligned place."""
        gap = padded(self.size) - self.size
        self.sha256.update(b"\0" * gap)
        self.sha256.update(np.ascontiguousarray(array).data if array.size else b"")
        self.size += gap + array.nbytes

    def hexdigest(self) -> str:
        """Of all arrays so far."""
        return self.sha256.hexdigest()


def _record_stack(folder: Path, numbers: dict[str, int], digest: _Digest, stack: Stack) -> StackRecord:
    stored = compact(stack.volume)
    digest.add(stored)
    return {
        "shape": stored.shape,
        "signed_zeros": stored.dtype != np.float32 and bool((np.signbit(stack.volume) & (stack.volume == 0)).any()),
        "sources": _sources(folder, numbers, stack),
    }


def _sources(folder: Path, numbers: dict[str, int], stack: Stack) -> list[tuple[int, int]]:
    """File and frame of each slice of a stack: of those with its number, the one that decodes to its pixels.

    Raises:
        CohortError: there is none, so that a file must have changed since the stack was read.
    """
    series = f"{stack.series_id}/"
    candidates: dict[tuple[int, int], list[tuple[int, list[Image]]]] = {}
    for file in list_files(str(folder / stack.series_id)):
        opened, number = open_images(file), numbers.get(series + file.name)
        if not isinstance(opened, list) or number is None:
            continue
        for image in opened:
            candidates.setdefault((image.instance_number, image.frame or 0), []).append((number, opened))
    sources: list[tuple[int, int]] = []
    decoded: dict[int, dict[int, np.ndarray | None]] = {}  # the last file's images by frame: a file is decoded once
    for k, instance in enumerate(stack.instance_numbers):
        frame = stack.frame(k) or 0
        for number, images in candidates.get((int(instance), frame), ()):
            if number not in decoded:
                arrays = decode_images(images, stack.volume.shape[1:])
                decoded = {number: {image.frame or 0: array for image, array in zip(images, arrays, strict=True)}}
            pixels = decoded[number].get(frame)
            if pixels is not None and np.array_equal(pixels, stack.volume[k]):
                sources.append((number, frame))
                break
        else:
            raise CohortError(
                f"{folder / series}: slice {instance}: found other pixels when it was decoded again, "
                "expected the same; does something write the folder?"
            )
    return sources


def _is_fresh(job: StudyJob) -> bool:
    content = _load(_index_path(job.folder, job.study_id))
    return content is not None and content.get("label") == label_of(job) and content.get("files") == job.signature


def _load(path: Path) -> Any:
    """What is noted of a study, or None where it is absent, damaged or of another version."""
    try:
        content = json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValueError, zlib.error):
        return None
    return content if isinstance(content, dict) and content.get("format") == FORMAT else None


def _index_path(folder: Path, study_id: int) -> Path:
    return folder / f"{int(study_id)}.json.gz"
