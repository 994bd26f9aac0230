"""Writes one DICOM file per slice, with the few tags that the competition's files have."""

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
# Syntaxes that only the package imagecodecs can encode, with the name of its function
OPTIONAL = {"jpeg_lossless": "ljpeg_encode", "jpeg_ls": "jpegls_encode", "jpeg_2000": "jpeg2k_encode"}
_ENHANCED_MR = UID("1.2.840.10008.5.1.4.1.1.4.1")
_IMPLEMENTATION = UID("1.2.826.0.1.3680043.10.1462.1")


@dataclass(slots=True)
class SliceFile:
    """The content of one DICOM file. Lengths are in mm, points and directions in patient space (LPS).

    Attributes:
        pixels: (rows, columns) uint16 or int16, 12 bits used.
        origin: (3,) ImagePositionPatient, the centre of the first pixel.
        row_direction: (3,) direction along a row, the first half of ImageOrientationPatient.
        column_direction: (3,) direction along a column, its second half.
        pixel_spacing: between rows, between columns.
        slice_thickness: SliceThickness.
        spacing_between_slices: SpacingBetweenSlices, from centre to centre.
        instance_number: InstanceNumber.
        study_uid: StudyInstanceUID.
        series_uid: SeriesInstanceUID.
        description: SeriesDescription.
        options: what `study.header_options` draws: transfer syntax, and the pitfalls of a header.
    """

    pixels: np.ndarray
    origin: np.ndarray
    row_direction: np.ndarray
    column_direction: np.ndarray
    pixel_spacing: tuple[float, float]
    slice_thickness: float
    spacing_between_slices: float
    instance_number: int
    study_uid: str
    series_uid: str
    description: str
    options: dict[str, object] = field(default_factory=dict)


def write_slice_file(path: Path, content: SliceFile) -> None:
    """Write one DICOM file, whole or not at all.

    Raises:
        CohortError: the file cannot be written.
    """
    syntax = SYNTAXES[str(content.options.get("syntax", "rle"))]
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = _ENHANCED_MR
    meta.MediaStorageSOPInstanceUID = UID(f"{content.series_uid}.{content.instance_number}")
    meta.TransferSyntaxUID = syntax
    meta.ImplementationClassUID = _IMPLEMENTATION
    data = Dataset()
    data.file_meta = meta
    data.SOPInstanceUID = f"{content.series_uid}.{content.instance_number}"
    data.StudyInstanceUID, data.SeriesInstanceUID = content.study_uid, content.series_uid
    data.SeriesDescription = content.description
    data.PatientPosition = "HFS"
    data.InstanceNumber = content.instance_number
    _add_geometry(data, content)
    _add_pixels(data, content)
    # A cohort has thousands of files, and all can be made again: flushing each to disk would only cost time
    with atomic_file(path, sync="none") as file:
        data.save_as(file, enforce_file_format=True)


def _number(value: float) -> str:
    """A decimal string (DS) of at most 16 characters (PS3.5 section 6.2)."""
    return f"{value:.9g}" if abs(value) >= 1e-4 else "0"


def _add_geometry(data: Dataset, content: SliceFile) -> None:
    data.ImagePositionPatient = [_number(v) for v in content.origin]
    data.ImageOrientationPatient = [f"{v:.8f}" for v in (*content.row_direction, *content.column_direction)]
    if not content.options.get("missing_spacing"):
        data.PixelSpacing = [_number(v) for v in content.pixel_spacing]
    if not content.options.get("missing_optional_tags"):
        data.SliceThickness = _number(content.slice_thickness)
        data.SpacingBetweenSlices = _number(content.spacing_between_slices)
        normal = np.cross(content.row_direction, content.column_direction)
        data.SliceLocation = _number(float(content.origin @ normal))


def _add_pixels(data: Dataset, content: SliceFile) -> None:
    pixels, options = content.pixels, content.options
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
    """The encoder of a syntax in `OPTIONAL`, from imagecodecs, which nothing else here needs.

    Raises:
        CohortError: imagecodecs is not installed.
    """
    try:
        module = importlib.import_module("imagecodecs")
    except ImportError as error:
        raise CohortError(f"--syntax {syntax}: needs the package imagecodecs, which is not installed") from error
    encode: Callable[..., bytes] = getattr(module, OPTIONAL[syntax])
    if syntax == "jpeg_2000":
        return lambda pixels: bytes(encode(pixels, codecformat="j2k", reversible=True, level=0))
    return lambda pixels: bytes(encode(pixels))
