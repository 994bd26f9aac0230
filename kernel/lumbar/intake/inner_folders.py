"""Which folder inside an indexed one a command would rather be given: a competition's, or the one with all images."""

from __future__ import annotations

import os
from pathlib import Path

from lumbar.intake.index import Index
from lumbar.io.competition import SPLITS, is_competition
from lumbar.io.text import masked_name

MASKS = "unusual names are masked, see docs/any-folder.md"


def competition_hint(index: Index, root: Path) -> str:
    """A line that names the competition's folders below the root; empty where there is none, or it is one itself."""
    if is_competition(root):
        return ""
    folders = {Path(os.path.dirname(file)) for file in _files(index)}
    parts = {folder.relative_to(root).parts for folder in folders if folder.is_relative_to(root)}
    images = [f"{split}_images" for split in SPLITS]
    above = {root.joinpath(*some[: some.index(name)]) for some in parts for name in images if name in some}
    # Such a folder is named in full, as a misspelt path is: no archive writes it, and its studies have numbers
    names = [str(folder.relative_to(root)) for folder in sorted(above) if folder != root and is_competition(folder)]
    if not names:
        return ""
    if len(names) == 1:
        return f"its folder {names[0]} is a competition's folder: name that one to predict"
    return f"its folders {', '.join(names)} are competition folders: name one of them to predict"


def inner_hint(index: Index, root: Path) -> str:
    """A line that names the folder below the root that holds all images; empty where that is the root."""
    inner = Path(os.path.commonpath([os.path.dirname(file) for file in _files(index)]))
    if inner == root:
        return ""
    parts = inner.relative_to(root).parts
    shown = tuple(map(masked_name, parts))
    return f"all images lie in its folder {Path(*shown)}" + (f" ({MASKS})" if shown != parts else "")


def _files(index: Index) -> list[str]:
    return [file for study in index.studies for one in study.decisions for file in one.part.files]
