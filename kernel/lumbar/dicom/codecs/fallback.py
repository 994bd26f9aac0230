"""Decoding by pydicom, for transfer syntaxes that the kit has no codec for.

On Kaggle pydicom has no plugins, so these are refused there; elsewhere its plugins are used. What no plugin decodes is
refused before any of its pixel data is parsed.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from lumbar.dicom.codecs.frames import split_frames
from lumbar.dicom.header import File
from lumbar.dicom.limits import check_image
from lumbar.dicom.parsing.values import PYDICOM_LOCK
from lumbar.errors import DicomError

_WORKING_BYTES = 8  # of memory that a plugin may need for each sample


def decode(file: File, reason: str) -> np.ndarray:
    """Decode a file's pixels with pydicom; ``reason`` says what the kit has no codec for.

    Raises:
        DicomError: pydicom has none either, the file asks for too much memory, or the result has another shape than the
            header says.
    """
    header = file.header
    n_frames = max(1, header.number_of_frames or 1)
    shape = header.frame_shape if n_frames == 1 else (n_frames, *header.frame_shape)
    # Checked before pydicom parses or allocates anything
    check_image(
        header.path, header.frame_shape, header.pixel_dtype.itemsize, n_frames, file.source.size, _WORKING_BYTES
    )
    import pydicom  # late: most runs do not need it

    _require_decoder(header.path, header.transfer_syntax_uid, reason)
    if file.pixels_length < 0:
        split_frames(file)
    try:
        with PYDICOM_LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset: Any = pydicom.dcmread(header.path, force=True)
            pixels = np.asarray(dataset.pixel_array)
    except Exception as error:  # plugins raise errors of any type; this package raises only DicomError
        text = " ".join(str(error).split())
        raise DicomError(
            f"{header.path}: found {reason}, expected one that lumbar or a plugin of pydicom decodes ({text})"
        ) from error
    if pixels.shape != shape:
        raise DicomError(f"{header.path}: found pixels of shape {pixels.shape} ({reason}), expected {shape}")
    return pixels


def _require_decoder(path: str, syntax: str, reason: str) -> None:
    """Refuse a transfer syntax that pydicom has no decoder for, or none with an installed plugin."""
    from pydicom.pixels.decoders.base import get_decoder  # late: most runs do not need it

    try:
        is_available = bool(get_decoder(syntax).is_available)  # type: ignore[no-untyped-call]
    except (NotImplementedError, ValueError):
        is_available = False
    if not is_available:
        raise DicomError(
            f"{path}: found {reason}, expected one that lumbar or a plugin of pydicom decodes (no plugin does)"
        )
