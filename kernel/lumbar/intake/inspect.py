"""What ``python -m lumbar inspect`` prints of a path: the index of a folder, and details where it is one study."""

from __future__ import annotations

import os
from pathlib import Path

from lumbar.bundle.manifest import Manifest
from lumbar.dicom.inspect import describe
from lumbar.errors import CohortError, DicomError
from lumbar.intake.by_image import decide_by_images
from lumbar.intake.index import Index, index_folder
from lumbar.intake.run_table import as_text
from lumbar.io.competition import is_competition
from lumbar.io.text import masked_name


def inspect(path: str | os.PathLike[str], manifest: Manifest | None = None) -> str:
    """Describe a DICOM file, or any folder of DICOM as ``predict`` takes it.

    Of a folder it is a table of studies and series with the kind of each and why; of one study whose series lie in
    folders of their own, or of one series, also what its files and stacks are.

    Args:
        path: of a file or folder.
        manifest: of a bundle, whose network tells contrasts that headers leave open; None for headers alone.

    Raises:
        DicomError: there is nothing that is DICOM.
        ManifestError: the network does not fit this code.
    """
    root = Path(path)
    if not root.is_dir():
        return describe(root)
    try:
        index = index_folder(root)
    except CohortError as error:
        try:
            return describe(root)  # whose refusal names what a series or study should have been
        except DicomError as refusal:
            raise refusal from error
    if manifest is not None:
        decide_by_images(index, manifest)
    table = "\n".join([as_text(index), *_inner_folders(index, root)])
    try:
        return f"{table}\n\n{describe(root)}" if _is_one_study(index, root) else table
    except DicomError as error:
        return f"{table}\n\n{error}"


def _inner_folders(index: Index, root: Path) -> list[str]:
    """A line that names the folder inside that holds all images, where a command would rather be given that one."""
    if is_competition(root):
        return []
    files = [file for study in index.studies for one in study.decisions for file in one.part.files]
    inner = Path(os.path.commonpath([os.path.dirname(file) for file in files]))
    for folder in (inner, *inner.parents):
        if folder == root or root not in folder.parents:
            break
        if is_competition(folder):
            return [f"its folder {folder.relative_to(root)} is a competition's folder: name that one to predict"]
    if inner == root or _is_one_study(index, root):
        return []
    parts = [masked_name(part) for part in inner.relative_to(root).parts]
    return [f"all images lie in its folder {Path(*parts)}"]


def _is_one_study(index: Index, root: Path) -> bool:
    """Whether a folder is what ``describe`` describes: a series' ``*.dcm`` files, or a study's folders of them."""
    if len(index.studies) != 1:
        return False
    files = [Path(file) for decision in index.studies[0].decisions for file in decision.part.files]
    depths = {len(file.relative_to(root).parts) for file in files}
    return depths in ({1}, {2}) and all(file.suffix.lower() == ".dcm" for file in files)
