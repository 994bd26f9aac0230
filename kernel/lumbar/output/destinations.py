"""Where a run may write: files that can be written, a different one for each output, and none of its inputs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from lumbar.bundle.code_hash import find_package
from lumbar.bundle.manifest import FILE_NAME, Manifest
from lumbar.errors import CohortError
from lumbar.io.files import check_writable

SPLITS = ("test", "train")
_TABLES = (
    "sample_submission.csv", "train.csv", "train_label_coordinates.csv",
    *(f"{split}_series_descriptions.csv" for split in SPLITS),
)  # fmt: skip


def check_destinations(outputs: Mapping[str, str | Path | None], root: Path, manifest: Manifest) -> None:
    """Check before any work that every output can be written without losing an input or another output.

    Args:
        outputs: the option's name → the path; None where nothing is written.
        root: the competition folder; its images and tables are inputs.
        manifest: of the bundle, whose files are inputs too.

    Raises:
        CohortError: a path that cannot be written, is an input (also through a link), or belongs to two outputs.
    """
    taken: dict[str, str] = {}
    for name, path in outputs.items():
        if path is None:
            continue
        place = os.path.realpath(path)
        if place in taken:
            raise CohortError(f"{path}: found for {taken[place]} and for {name}, expected a file for each")
        taken[place] = name
        for file in _input_files(root, manifest):
            if place == os.path.realpath(file) or _is_same(place, file):
                raise CohortError(f"{path}: found an input of this run for {name}, expected a file of its own")
        for folder in _input_folders(root, manifest):
            if Path(place).is_relative_to(os.path.realpath(folder)):
                raise CohortError(f"{path}: found a place among the inputs for {name}, expected one outside {folder}")
        check_writable(path)


def _input_files(root: Path, manifest: Manifest) -> Iterator[Path]:
    yield manifest.folder / FILE_NAME
    yield from (manifest.path(entry) for entry in manifest.weights)
    yield from (root / name for name in _TABLES)


def _input_folders(root: Path, manifest: Manifest) -> Iterator[Path]:
    yield from (root / f"{split}_images" for split in SPLITS)
    if (package := find_package(manifest.folder)) is not None:
        yield package


def _is_same(place: str, file: Path) -> bool:
    """Whether both names mean the same file on the disk."""
    try:
        return os.path.samefile(place, file)
    except (OSError, ValueError):
        return False
