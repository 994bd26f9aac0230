"""Whether a folder is a competition folder: a look at names alone, before anything heavy is imported."""

from __future__ import annotations

import os
from pathlib import Path

from lumbar.errors import CohortError

SPLITS = ("test", "train")


def check_competition(root: Path, split: str, needs_table: bool = True) -> None:
    """See that a folder has the images of a split, and its table of series where that is needed.

    Raises:
        CohortError: one is missing; the message says which, and what lies there instead.
    """
    check_root(root, split)
    table, images = root / f"{split}_series_descriptions.csv", root / f"{split}_images"
    hint = _hint(root, split)
    if needs_table and not table.exists():
        raise CohortError(f"{table}: not found, expected the competition's table of series{hint}")
    if not images.is_dir():
        raise CohortError(f"{images}: not found, expected a folder with one folder a study{hint}")


def folder_to_index(root: Path, split: str) -> Path | None:
    """The folder whose DICOM files tell the studies themselves, since no table of series does.

    None for a competition's folder, and where ``check_competition`` says which folder was meant: the other split's, or
    one inside that has a table.
    """
    if (root / f"{split}_series_descriptions.csv").exists():
        return None
    if (root / f"{split}_images").is_dir():
        return root / f"{split}_images"
    if any((root / f"{name}_images").is_dir() for name in SPLITS):
        return None
    return None if any(_is_competition(path) for path in _folders(root)) else root


def check_root(root: Path, split: str) -> None:
    """See that a folder is there.

    Raises:
        CohortError: it is not.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "no such folder"
        raise CohortError(
            f"{root}: {what}, expected a folder of DICOM, or a competition folder with {split}_images{_above(root)}"
        )


def _hint(root: Path, split: str) -> str:
    """What was probably meant, put behind a refusal."""
    other = next(name for name in SPLITS if name != split)
    has_images = (root / f"{split}_images").is_dir()
    if (root / f"{other}_images").is_dir() and not has_images:
        return f": the folder has {other}_images, add --split {other}"
    if above := _above(root):
        return above
    inside = next((path for path in _folders(root) if _is_competition(path)), None)
    if inside is not None:
        return f": {inside} has them, name that folder"
    if has_images:
        return ": README says how to write one for studies of your own"
    return ""


def _above(root: Path) -> str:
    """A folder too deep: the images themselves, or a study among them."""
    for above in list(root.parents)[:3]:
        if _is_competition(above):
            return f": {above} is one, name that folder"
    return ""


def _is_competition(folder: Path) -> bool:
    return any(
        (folder / f"{split}_images").is_dir() and (folder / f"{split}_series_descriptions.csv").is_file()
        for split in SPLITS
    )


def _folders(root: Path) -> list[Path]:
    try:
        with os.scandir(root) as entries:
            return sorted(Path(entry.path) for entry in list(entries)[:1000] if entry.is_dir())
    except OSError:
        return []
