"""The one place where a file goes to pydicom: what our own code does not read.

On Kaggle pydicom has no plugins, so compressed syntaxes end in a refusal there; elsewhere its plugins are used. What no
plugin decodes is refused before any of its pixel data is parsed.
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

_WORKING_BYTES = 8  # of a plugin, for each sample


def decode(file: File, reason: str) -> np.ndarray:
    """Pixels as pydicom gives them; ``reason`` says why our own code does not.

    Raises:
        DicomError: pydicom cannot either, the file asks for too much, or what comes is not what the header says.
    """
    header = file.header
    n_frames = max(1, header.number_of_frames or 1)
    shape = header.frame_shape if n_frames == 1 else (n_frames, *header.frame_shape)
    # What is claimed is checked before pydicom parses or allocates for it
    check_image(
        header.path, header.frame_shape, header.pixel_dtype.itemsize, n_frames, file.source.size, _WORKING_BYTES
    )
    import pydicom  # here, since most runs never need it

    _require_decoder(header.path, header.transfer_syntax_uid, reason)
    if file.pixels_length < 0:
        split_frames(file)
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


def _require_decoder(path: str, syntax: str, reason: str) -> None:
    """Refuse what pydicom has no decoder for, or none whose plugin is installed."""
    from pydicom.pixels.decoders.base import get_decoder  # here, since most runs never need it

    try:
        is_available = bool(get_decoder(syntax).is_available)  # type: ignore[no-untyped-call]
    except (NotImplementedError, ValueError):
        is_available = False
    if not is_available:
        raise DicomError(
            f"{path}: found {reason}, expected one that lumbar or a plugin of pydicom decodes (no plugin does)"
        )
