"""PNG files of studies (``--pictures``): one sagittal slice of each kind with its levels, one axial slice a level."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lumbar.chains.contract import Chain, Picture
from lumbar.errors import LumbarError
from lumbar.io.file_names import file_stem
from lumbar.io.files import write_atomically

_PNG = b"\x89PNG\r\n\x1a\n"
_NAME_LENGTH = 60


def draw_files(chain: Chain, study: Any, result: Any) -> list[Picture]:
    """The pictures of a study as PNG: the chain's own, or those of its report where it has none for files."""
    if chain.draw_files is not None:
        return list(chain.draw_files(study, result))
    return [_as_png(picture) for picture in chain.draw(study, result)]


def _as_png(picture: Picture) -> Picture:
    if picture.png.startswith(_PNG):
        return picture
    import cv2
    import numpy as np

    image = cv2.imdecode(np.frombuffer(picture.png, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise LumbarError(f"picture {picture.title}: found neither PNG nor JPEG, expected one of them")
    return Picture(picture.title, cv2.imencode(".png", image)[1].tobytes(), None, picture.name)


def write_pictures(folder: Path, study_id: int | str, pictures: Sequence[Picture]) -> None:
    """Write the pictures of one study into a folder, as ``<study>_<picture>.png``.

    Raises:
        CohortError: one cannot be written.
    """
    taken: set[str] = set()
    for number, picture in enumerate(pictures, 1):
        name = picture.name or re.sub(r"[^a-z0-9]+", "_", picture.title.lower()).strip("_")[:_NAME_LENGTH]
        if not name or name in taken:
            name = f"{name}_{number}".lstrip("_")
        taken.add(name)
        write_atomically(folder / f"{file_stem(study_id)}_{name}.png", picture.png, sync="none")
