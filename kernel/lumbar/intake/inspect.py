"""What ``python -m lumbar inspect`` prints of a path: the index of a folder, and details where it is one study."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lumbar.bundle.manifest import Manifest
from lumbar.dicom.inspect import describe
from lumbar.errors import CohortError, DicomError
from lumbar.intake.by_image import decide_by_images
from lumbar.intake.index import Index, index_folder
from lumbar.intake.inner_folders import MASKS, competition_hint, inner_hint
from lumbar.intake.run_table import as_text
from lumbar.io.competition import is_competition

_MASKED = re.compile(r"\bname~(7e)?[0-9a-f]{4}\b")  # as ``masked_name`` makes them, in an id with ~ as ~7e


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
    text = _described(Path(path), manifest)
    return f"{text}\n{MASKS}" if _MASKED.search(text) and MASKS not in text else text


def _described(root: Path, manifest: Manifest | None) -> str:
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
    is_one = _is_one_study(index, root)
    hint = competition_hint(index, root) or ("" if is_one or is_competition(root) else inner_hint(index, root))
    table = as_text(index) + (f"\n{hint}" if hint else "")
    try:
        return f"{table}\n\n{describe(root)}" if is_one else table
    except DicomError as error:
        return f"{table}\n\n{error}"


def _is_one_study(index: Index, root: Path) -> bool:
    """Whether a folder is what ``describe`` describes: a series' ``*.dcm`` files, or a study's folders of them."""
    if len(index.studies) != 1:
        return False
    files = [Path(file) for decision in index.studies[0].decisions for file in decision.part.files]
    depths = {len(file.relative_to(root).parts) for file in files}
    return depths in ({1}, {2}) and all(file.suffix.lower() == ".dcm" for file in files)
