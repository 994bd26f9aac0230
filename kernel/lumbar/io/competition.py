"""Whether a folder is a competition folder: a look at names alone, before anything heavy is imported.

``os.path`` is asked, which takes what may not be looked at for absent; ``Path`` raises.
"""

from __future__ import annotations

import os
from pathlib import Path

from lumbar.errors import CohortError
from lumbar.io.unfinished import unfinished_hint

SPLITS = ("test", "train")


def check_competition(root: Path, split: str, needs_table: bool = True, has_split: bool = True) -> None:
    """See that a folder has the images of a split, and its table of series where that is needed.

    Args:
        root: the folder.
        split: ``test`` or ``train``.
        needs_table: False for a command that looks at the table itself.
        has_split: the command has an option ``--split``, which a refusal may name.

    Raises:
        CohortError: one is missing; the message says which, and what lies there instead.
    """
    check_root(root, split)
    table, images = root / f"{split}_series_descriptions.csv", root / f"{split}_images"
    hint = _hint(root, split, has_split)
    if needs_table and not os.path.exists(table):
        raise CohortError(f"{table}: not found, expected the competition's table of series{hint}")
    if not os.path.isdir(images):
        raise CohortError(f"{images}: not found, expected a folder with one folder a study{hint}")
    _check_readable(images)


def folder_to_index(root: Path, split: str) -> Path | None:
    """The folder whose DICOM files tell the studies themselves, since no table of series does.

    None for a competition's folder, and where ``check_competition`` says which folder was meant: the other split's, or
    one inside that has a table.
    """
    if os.path.exists(root / f"{split}_series_descriptions.csv"):
        return None
    if os.path.isdir(root / f"{split}_images"):
        return root / f"{split}_images"
    if any(os.path.isdir(root / f"{name}_images") for name in SPLITS):
        return None
    return None if any(is_competition(path) for path in _folders(root)) else root


def check_root(root: Path, split: str, may_be_any: bool = False) -> None:
    """See that a folder is there.

    Args:
        root: the folder.
        split: ``test`` or ``train``.
        may_be_any: the command takes any folder of DICOM too.

    Raises:
        CohortError: it is not.
    """
    if not os.path.isdir(root):
        what = "is a file" if os.path.exists(root) else "no such folder"
        wanted = ("a folder of DICOM, or " if may_be_any else "") + f"a competition folder with {split}_images"
        raise CohortError(f"{root}: {what}, expected {wanted}{_above(root)}")
    _check_readable(root)


def _check_readable(folder: Path) -> None:
    if not os.access(folder, os.R_OK | os.X_OK):
        raise CohortError(f"{folder}: cannot be read (permission denied), expected a folder that may be looked into")


def _hint(root: Path, split: str, has_split: bool) -> str:
    """What was probably meant, put behind a refusal."""
    if unfinished := unfinished_hint(root, split):
        return unfinished
    other = next(name for name in SPLITS if name != split)
    has_images = os.path.isdir(root / f"{split}_images")
    if os.path.isdir(root / f"{other}_images") and not has_images:
        return f": the folder has {other}_images, " + (
            f"add --split {other}" if has_split else "which this command does not read"
        )
    if above := _above(root):
        return above
    inside = next((path for path in _folders(root) if is_competition(path)), None)
    if inside is not None:
        return f": {inside} has them, name that folder"
    if has_images:
        return ": README says how to write one for studies of your own"
    return ""


def _above(root: Path) -> str:
    """A folder too deep: the images themselves, or a study among them."""
    for above in list(root.parents)[:3]:
        if is_competition(above):
            return f": {above} is one, name that folder"
    return ""


def is_competition(folder: Path) -> bool:
    """Whether a folder has images of a split, and their table."""
    return any(
        os.path.isdir(folder / f"{split}_images") and os.path.isfile(folder / f"{split}_series_descriptions.csv")
        for split in SPLITS
    )


def _folders(root: Path) -> list[Path]:
    try:
        with os.scandir(root) as entries:
            return sorted(Path(entry.path) for entry in list(entries)[:1000] if entry.is_dir())
    except OSError:
        return []
