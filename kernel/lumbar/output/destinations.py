"""Where a run may write: files that can be written, a different one for each output, and none of its inputs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from lumbar.bundle.code_hash import find_package
from lumbar.bundle.manifest import FILE_NAME, Manifest
from lumbar.competitions.registry import DEFAULT
from lumbar.errors import CohortError
from lumbar.io.files import check_writable, make_folder

FOLDERS = ("pictures", "markups", "report pages")  # outputs that are a folder of files


def check_destinations(outputs: Mapping[str, str | Path | None], root: Path, manifest: Manifest) -> None:
    """Check before any work that every output can be written without losing an input or another output.

    A folder that is missing is made, once no output is refused.

    Args:
        outputs: the option's name → the path, of a folder for those in ``FOLDERS``, else of a file; None where nothing
            is written.
        root: the competition folder, whose images and tables are inputs; or any folder of DICOM, all of which is.
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
        _check_place(path, place, name, root, manifest)
    for name, path in outputs.items():
        if path is not None and name in FOLDERS:
            make_folder(path)
        elif path is not None:
            if not os.path.lexists(folder := os.path.dirname(os.path.realpath(path))):
                make_folder(folder)
            check_writable(path)


def output_folders(outputs: Mapping[str, str | Path | None]) -> list[Path]:
    """The folders that outputs lie in, or are; by option as for ``check_destinations``."""
    given = [(name, Path(path)) for name, path in outputs.items() if path is not None]
    return [path if name in FOLDERS else path.parent for name, path in given]


def _check_place(path: str | Path, place: str, name: str, root: Path, manifest: Manifest) -> None:
    """See that an output is no input and lies among none; ``place`` is where its path leads."""
    for file in _input_files(root, manifest):
        if place == os.path.realpath(file) or _is_same(place, file):
            raise CohortError(f"{path}: found an input of this run for {name}, expected a file of its own")
    for folder in _input_folders(root, manifest):
        if Path(place).is_relative_to(os.path.realpath(folder)):
            raise CohortError(f"{path}: found a place among the inputs for {name}, expected one outside {folder}")
    bundle, data = os.path.realpath(manifest.folder), os.path.realpath(root)
    if place == data:
        raise CohortError(f"{path}: found an input of this run for {name}, expected a folder of its own")
    is_known = manifest.competition_name == DEFAULT
    has_image_folders = any((root / images).is_dir() for images in manifest.competition.image_folders())
    # Where the data are any folder of DICOM, the images may lie anywhere in it
    if not has_image_folders and (is_known or name in FOLDERS) and Path(place).is_relative_to(data):
        raise CohortError(f"{path}: found a place among the inputs for {name}, expected one outside {root}")
    its_folder = place if name in FOLDERS else os.path.dirname(place)
    if not os.path.lexists(its_folder) or name in FOLDERS:
        _check_bundle(path, its_folder, name, bundle, manifest)


def _check_bundle(path: str | Path, folder: str, name: str, bundle: str, manifest: Manifest) -> None:
    """No folder is made inside the bundle, and none there is filled."""
    if not Path(folder).is_relative_to(bundle):
        return
    if name in FOLDERS:
        raise CohortError(f"{path}: found a place inside the bundle for {name}, expected one outside {manifest.folder}")
    raise CohortError(f"{path}: cannot be written (no folder is made inside the bundle), expected a place outside")


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
