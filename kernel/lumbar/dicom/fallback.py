"""The one place where a file goes to pydicom: what our own code does not read.

On Kaggle pydicom has no plugins, so compressed syntaxes end in a refusal there; elsewhere its plugins are used.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from lumbar.dicom._values import PYDICOM_LOCK
from lumbar.dicom.header import File
from lumbar.errors import DicomError

_MAX_SAMPLES_PER_BYTE = 4096  # no codec packs more into a byte of a picture that is not flat


def decode(file: File, reason: str) -> np.ndarray:
    """Pixels as pydicom gives them; ``reason`` says why our own code does not.

    Raises:
        DicomError: pydicom cannot either, or what it gives is not what the header says.
    """
    header = file.header
    n_frames = max(1, header.number_of_frames or 1)
    shape = header.frame_shape if n_frames == 1 else (n_frames, *header.frame_shape)
    n_samples = 1
    for size in shape:
        n_samples *= size
    # Sizes are checked before pydicom allocates for them
    if n_samples > _MAX_SAMPLES_PER_BYTE * file.source.size:
        raise DicomError(
            f"{header.path}: found {file.source.size} bytes, expected more for {n_samples} samples ({reason})"
        )
    import pydicom  # here, since most runs never need it

    try:
        with PYDICOM_LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset: Any = pydicom.dcmread(header.path, force=True)
            pixels = np.asarray(dataset.pixel_array)
    except Exception as error:  # plugins raise what they like; nothing but a refusal may leave this package
        text = " ".join(str(error).split())
        raise DicomError(
            f"{header.path}: found {reason}, expected one that lumbar or a plugin of pydicom decodes ({text})"
        ) from error
    if pixels.shape != shape:
        raise DicomError(f"{header.path}: found pixels of shape {pixels.shape} ({reason}), expected {shape}")
    return pixels
