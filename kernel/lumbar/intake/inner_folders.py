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
    inner = [folder.relative_to(root).parts for folder in sorted(above) if folder != root and is_competition(folder)]
    if not inner:
        return ""
    # Its own name is shown, as a misspelt path is: no archive writes such a folder. Those around it may be patients'
    shown = [(*map(masked_name, parts[:-1]), parts[-1]) for parts in inner]
    names, masks = ", ".join(str(Path(*parts)) for parts in shown), f" ({MASKS})" if shown != inner else ""
    if len(inner) == 1:
        return f"its folder {names} is a competition's folder: name that one to predict{masks}"
    return f"its folders {names} are competition folders: name one of them to predict{masks}"


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
