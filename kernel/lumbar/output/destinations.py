"""Where a run may write: files that can be written, a different one for each output, and none of its inputs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from lumbar.bundle.code_hash import find_package
from lumbar.bundle.manifest import FILE_NAME, Manifest
from lumbar.errors import CohortError
from lumbar.io.files import check_writable, make_folder

FOLDERS = ("pictures", "markups", "report pages")  # outputs that are a folder of files


def check_destinations(outputs: Mapping[str, str | Path | None], root: Path, manifest: Manifest) -> None:
    """Check before any work that every output can be written without losing an input or another output.

    A folder that is missing is made.

    Args:
        outputs: the option's name → the path, of a folder for those in ``FOLDERS``, else of a file; None where nothing
            is written.
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
        is_folder = name in FOLDERS
        if place in taken:
            kind = "folder" if is_folder else "file"
            raise CohortError(f"{path}: found for {taken[place]} and for {name}, expected a {kind} for each")
        taken[place] = name
        for file in _input_files(root, manifest):
            if place == os.path.realpath(file) or _is_same(place, file):
                raise CohortError(f"{path}: found an input of this run for {name}, expected a file of its own")
        for folder in _input_folders(root, manifest):
            if Path(place).is_relative_to(os.path.realpath(folder)):
                raise CohortError(f"{path}: found a place among the inputs for {name}, expected one outside {folder}")
        if is_folder:
            _check_folder(path, place, name, root, manifest)
        else:
            _make_folder_for(path, place, manifest)
            check_writable(path)


def _check_folder(path: str | Path, place: str, name: str, root: Path, manifest: Manifest) -> None:
    """Make a folder to fill, and see that it can be written: never the data's own, nor inside the bundle."""
    bundle, data = os.path.realpath(manifest.folder), os.path.realpath(root)
    if place == data:
        raise CohortError(f"{path}: found an input of this run for {name}, expected a folder of its own")
    has_image_folders = any((root / images).is_dir() for images in manifest.competition.image_folders())
    if not has_image_folders and Path(place).is_relative_to(data):  # the images may lie anywhere in the folder
        raise CohortError(f"{path}: found a place among the inputs for {name}, expected one outside {root}")
    if Path(place).is_relative_to(bundle):
        raise CohortError(f"{path}: found a place inside the bundle for {name}, expected one outside {manifest.folder}")
    make_folder(path)


def refuse_inputs(outputs: Mapping[str, str | Path | None], files: Iterable[str]) -> None:
    """Refuse an output that would replace one of the files that are read.

    Raises:
        CohortError: naming it.
    """
    places = {os.path.realpath(path): (name, path) for name, path in outputs.items() if path is not None}
    for file in files:
        if (place := os.path.realpath(file)) in places:
            name, path = places[place]
            raise CohortError(f"{path}: found an input of this run for {name}, expected a file of its own")


def _make_folder_for(path: str | Path, place: str, manifest: Manifest) -> None:
    """Make the folder of an output where it is missing, but never inside the bundle."""
    folder = os.path.dirname(place)
    if os.path.lexists(folder):
        return
    if Path(folder).is_relative_to(os.path.realpath(manifest.folder)):
        raise CohortError(f"{path}: cannot be written (no folder is made inside the bundle), expected a place outside")
    make_folder(folder)


def _input_files(root: Path, manifest: Manifest) -> Iterator[Path]:
    yield manifest.folder / FILE_NAME
    yield from (manifest.path(entry) for entry in manifest.weights)
    yield from (root / name for name in manifest.competition.files())


def _input_folders(root: Path, manifest: Manifest) -> Iterator[Path]:
    yield from (root / name for name in manifest.competition.image_folders())
    if (package := find_package(manifest.folder)) is not None:
        yield package


def _is_same(place: str, file: Path) -> bool:
    """Whether both names mean the same file on the disk."""
    try:
        return os.path.samefile(place, file)
    except (OSError, ValueError):
        return False
