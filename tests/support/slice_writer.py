"""Writes one uncompressed DICOM slice with pydicom, with the tags that geometry needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid


def write_slice(
    path: Path,
    pixels: np.ndarray,
    *,
    number: int,
    origin: Sequence[float],
    orientation: Sequence[float],
    spacing_mm: float,
) -> None:
    """Write a slice of 12-bit pixels (rows, columns) and make its folder.

    Args:
        path: file to write; its name also gives the SOP instance UID.
        pixels: values 0 to 4095.
        number: InstanceNumber.
        origin: ImagePositionPatient.
        orientation: ImageOrientationPatient, such as `series_writer.SAGITTAL`.
        spacing_mm: PixelSpacing, between rows and between columns.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(path)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    data.InstanceNumber = number
    data.Rows, data.Columns = pixels.shape
    data.ImagePositionPatient = [float(value) for value in origin]
    data.ImageOrientationPatient = [float(value) for value in orientation]
    data.PixelSpacing = [spacing_mm, spacing_mm]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = pixels.astype("<u2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
