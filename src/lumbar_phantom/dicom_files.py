"""One slice a file, with the few tags that the competition's files have."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLSLossless,
    RLELossless,
)

from lumbar.errors import CohortError
from lumbar.io.files import atomic_file
from lumbar_phantom import rle

SYNTAXES = {
    "rle": RLELossless,
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "big": ExplicitVRBigEndian,
    "jpeg_lossless": JPEGLossless,
    "jpeg_ls": JPEGLSLossless,
    "jpeg_2000": JPEG2000Lossless,
}
OPTIONAL = {"jpeg_lossless": "ljpeg_encode", "jpeg_ls": "jpegls_encode", "jpeg_2000": "jpeg2k_encode"}  # of imagecodecs
_ENHANCED_MR = UID("1.2.840.10008.5.1.4.1.1.4.1")
_IMPLEMENTATION = UID("1.2.826.0.1.3680043.10.1462.1")


@dataclass(slots=True)
class SliceFile:
    """What one file holds. pixels: (rows, columns) uint16 or int16; geometry in mm, LPS."""

    pixels: np.ndarray
    origin: np.ndarray
    row_direction: np.ndarray  # direction of increasing column, as ImageOrientationPatient's first half
    column_direction: np.ndarray
    spacing: tuple[float, float]  # between rows, between columns
    thickness: float
    gap_spacing: float
    instance: int
    study_uid: str
    series_uid: str
    description: str
    options: dict[str, object] = field(default_factory=dict)  # pitfalls of the header


def write_slice(path: Path, item: SliceFile) -> None:
    """Write one DICOM file, whole or not at all. Raises CohortError where it cannot be written."""
    options = item.options
    syntax = SYNTAXES[str(options.get("syntax", "rle"))]
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = _ENHANCED_MR
    meta.MediaStorageSOPInstanceUID = UID(f"{item.series_uid}.{item.instance}")
    meta.TransferSyntaxUID = syntax
    meta.ImplementationClassUID = _IMPLEMENTATION
    data = Dataset()
    data.file_meta = meta
    data.SOPInstanceUID = f"{item.series_uid}.{item.instance}"
    data.StudyInstanceUID, data.SeriesInstanceUID = item.study_uid, item.series_uid
    data.SeriesDescription = item.description
    data.PatientPosition = "HFS"
    data.InstanceNumber = item.instance
    _geometry(data, item)
    _pixels(data, item, options)
    with atomic_file(path, sync="none") as file:  # thousands of them, and all can be made again
        data.save_as(file, enforce_file_format=True)


def _number(value: float) -> str:
    """A decimal string of at most 16 characters (PS3.5 6.2)."""
    return f"{value:.9g}" if abs(value) >= 1e-4 else "0"


def _geometry(data: Dataset, item: SliceFile) -> None:
    data.ImagePositionPatient = [_number(v) for v in item.origin]
    data.ImageOrientationPatient = [f"{v:.8f}" for v in (*item.row_direction, *item.column_direction)]
    data.PixelSpacing = [_number(v) for v in item.spacing]
    if not item.options.get("missing_optional_tags"):
        data.SliceThickness = _number(item.thickness)
        data.SpacingBetweenSlices = _number(item.gap_spacing)
        normal = np.cross(item.row_direction, item.column_direction)
        data.SliceLocation = _number(float(item.origin @ normal))


def _pixels(data: Dataset, item: SliceFile, options: dict[str, object]) -> None:
    pixels = item.pixels
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME1" if options.get("monochrome1") else "MONOCHROME2"
    data.Rows, data.Columns = pixels.shape
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PixelRepresentation = 0
    if "rescale" in options:
        data.RescaleIntercept, data.RescaleSlope = str(options["rescale"]), "1"
        data.RescaleType = "US"
    high = float(np.percentile(pixels[::4, ::4], 99)) + 1
    window = str(options.get("window", "single"))
    if window == "single":
        data.WindowCenter, data.WindowWidth = _number(round(high / 2)), _number(round(high))
    elif window == "multi":
        data.WindowCenter, data.WindowWidth = [f"{high / 2:.0f}", f"{high / 3:.0f}"], [f"{high:.0f}", f"{high / 2:.0f}"]
    syntax = str(options.get("syntax", "rle"))
    if SYNTAXES[syntax].is_encapsulated:
        frame = rle.encode(pixels) if syntax == "rle" else optional_encoder(syntax)(np.ascontiguousarray(pixels))
        data.PixelData = encapsulate([frame])
        data["PixelData"].VR = "OB"
        data["PixelData"].is_undefined_length = True
    else:
        order = ">u2" if syntax == "big" else "<u2"
        data.PixelData = np.ascontiguousarray(pixels).astype(order).tobytes()
        data["PixelData"].VR = "OW"


def optional_encoder(syntax: str) -> Callable[[np.ndarray], bytes]:
    """An encoder that this package does not need itself. Raises CohortError where imagecodecs is not installed."""
    try:
        module = importlib.import_module("imagecodecs")
    except ImportError as error:
        raise CohortError(f"--syntax {syntax}: needs the package imagecodecs, which is not installed") from error
    encode: Callable[..., bytes] = getattr(module, OPTIONAL[syntax])
    if syntax == "jpeg_2000":
        return lambda pixels: bytes(encode(pixels, codecformat="j2k", reversible=True, level=0))
    return lambda pixels: bytes(encode(pixels))
