"""The one place where a file goes to pydicom: what our own code does not read.

On Kaggle pydicom has no plugins, so compressed syntaxes end in a refusal there; elsewhere its plugins are used.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lumbar.dicom.header import File
from lumbar.errors import DicomError


def decode(file: File, reason: str) -> np.ndarray:
    """Pixels as pydicom gives them; ``reason`` says why our own code does not.

    Raises:
        DicomError: pydicom cannot either.
    """
    header = file.header
    # Sizes are checked before pydicom allocates for them; no codec packs more than 4,096 samples into a byte of a
    # picture that is not flat.
    n_samples = int(np.prod(header.frame_shape)) * max(1, header.number_of_frames or 1)
    if n_samples > 4096 * file.source.size:
        raise DicomError(
            f"{header.path}: found {file.source.size} bytes, expected more for {n_samples} samples ({reason})"
        )
    import pydicom  # here, since most runs never need it

    try:
        dataset: Any = pydicom.dcmread(header.path, force=True)
        pixels = dataset.pixel_array
    except Exception as error:  # plugins raise what they like; nothing but a refusal may leave this package
        text = " ".join(str(error).split())
        raise DicomError(
            f"{header.path}: found {reason}, expected a syntax that lumbar or pydicom's plugins decode ({text})"
        ) from error
    return np.asarray(pixels)
