"""What the index reads of a file: its header alone, as a few fields that tell studies, series and contrasts apart."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from lumbar.dicom.parsing.acquisition import Attributes, read_attributes
from lumbar.errors import DicomError
from lumbar.intake.files import may_be_dicom
from lumbar.io.text import one_line

_CHUNK = 256  # files that a thread reads at a time
_DIRECTORY = "1.2.840.10008.1.3.10"  # Media Storage Directory: a DICOMDIR under another name
_ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
# SOP classes by the beginning of their UIDs (PS3.4 annex B.5) → modality, for files without Modality
_MODALITIES = {
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.128": "PT",
    "1.2.840.10008.5.1.4.1.1.20": "NM",
    "1.2.840.10008.5.1.4.1.1.6.": "US",
    "1.2.840.10008.5.1.4.1.1.3.": "US",
    "1.2.840.10008.5.1.4.1.1.1": "CR",
    "1.2.840.10008.5.1.4.1.1.12.": "XA",
    "1.2.840.10008.5.1.4.1.1.7": "SC",
    "1.2.840.10008.5.1.4.1.1.88": "SR",
}
_NO_AGENT = frozenset(
    (
        "off",
        "no",
        "none",
        "nil",
        "n",
        "0",
        "0.0",
        "false",
        "without",
        "no_contrast",
        "nativ",
        "keine",
        "ohne",
        "sin",
        "na",
    )
)


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """One file of the index. Texts are as the file has them: only known words of them may be shown.

    Attributes:
        path: of the file.
        study_uid, series_uid, sop_uid: StudyInstanceUID, SeriesInstanceUID, SOPInstanceUID; empty where absent.
        patient_id: a hash of PatientID; empty where it is blank.
        patient_name: hashes of the words of PatientName, in order; they are compared and never shown.
        modality: Modality in capitals, else by SOP class; empty where neither says it.
        has_pixels: whether it holds an image.
        sop_class: SOPClassUID.
        image_type: the values of ImageType in capitals.
        description: SeriesDescription and ProtocolName.
        sequence_name: SequenceName, the scanner's own.
        study_words: StudyDescription.
        body_part: BodyPartExamined.
        sequence: ScanningSequence values in capitals.
        is_diffusion: a diffusion weighting other than 0 is given.
        contrast_agent: whether ContrastBolusAgent names one.
        acquisition_contrast: AcquisitionContrast of enhanced objects, in capitals.
        tr_ms, te_ms, ti_ms, flip_deg, echo_train: RepetitionTime, EchoTime, InversionTime, FlipAngle, EchoTrainLength.
        orientation: ImageOrientationPatient; position: ImagePositionPatient, both in patient space.
        shape: Rows, Columns; spacing_mm: PixelSpacing; thickness_mm: SliceThickness.
        frames: NumberOfFrames, 1 where absent.
        instance_number: InstanceNumber.
        echo_number: EchoNumbers.
    """

    path: str
    study_uid: str
    series_uid: str
    sop_uid: str
    patient_id: str
    patient_name: frozenset[str]
    modality: str
    has_pixels: bool
    sop_class: str
    image_type: tuple[str, ...]
    description: str
    sequence_name: str
    study_words: str
    body_part: str
    sequence: tuple[str, ...]
    is_diffusion: bool
    contrast_agent: bool
    acquisition_contrast: str
    tr_ms: float | None
    te_ms: float | None
    ti_ms: float | None
    flip_deg: float | None
    echo_train: float | None
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    shape: tuple[int, int]
    spacing_mm: tuple[float, float] | None
    thickness_mm: float | None
    frames: int
    instance_number: int | None
    echo_number: int | None


def read_image_header(path: str) -> ImageHeader | str | None:
    """The index's entry of a file; a line where it is DICOM but cannot be read; None where it is no DICOM file."""
    if not may_be_dicom(path):
        return None
    try:
        attributes = read_attributes(path)
    except DicomError as error:
        return one_line(error) if attributes_expected(path) else None
    except Exception as error:  # one file, whatever it holds, must not end the index of 100,000
        return f"{path}: {one_line(error)}, expected a DICOM header"
    sop_class = attributes.sop_class
    if sop_class.startswith(_DIRECTORY):
        return None
    if not attributes.has_mark and not (sop_class or (attributes.header.rows and attributes.header.columns)):
        return None  # by its name it might have been one
    return _entry(path, attributes)


def attributes_expected(path: str) -> bool:
    """Whether a file that cannot be read says itself that it is DICOM, so that a line about it is due."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _entry(path: str, read: Attributes) -> ImageHeader:
    header, text = read.header, read.text
    spacing = header.pixel_spacing
    return ImageHeader(
        path=path,
        study_uid=header.study_instance_uid or "",
        series_uid=header.series_instance_uid or "",
        sop_uid=read.sop_uid,
        patient_id=_hashed(text("PatientID")),
        patient_name=_hashed_words(text("PatientName")),
        modality=(header.modality or "").upper() or _modality(read.sop_class),
        has_pixels=read.has_pixels,
        sop_class=read.sop_class,
        image_type=_values(header.image_type),
        description=" ".join(filter(None, (header.series_description, text("ProtocolName")))),
        sequence_name=text("SequenceName").replace("*", " "),
        study_words=" ".join(filter(None, (text("StudyDescription"), text("RequestedProcedureDescription")))),
        body_part=text("BodyPartExamined"),
        sequence=_values(text("ScanningSequence") or text("EchoPulseSequence")),
        is_diffusion=(read.number("DiffusionBValue") or 0.0) > 0,
        contrast_agent=_is_agent(text("ContrastBolusAgent")),
        acquisition_contrast=text("AcquisitionContrast").upper(),
        tr_ms=_positive(header.repetition_time),
        te_ms=_positive(header.echo_time),
        ti_ms=_positive(read.number("InversionTime")),
        flip_deg=_positive(read.number("FlipAngle")),
        echo_train=_positive(read.number("EchoTrainLength")),
        orientation=header.image_orientation_patient or read.frame_orientation,
        position=header.image_position_patient or read.frame_position,
        shape=(header.rows or 0, header.columns or 0),
        spacing_mm=None if spacing is None else (float(spacing[0]), float(spacing[1])),
        thickness_mm=_positive(header.slice_thickness),
        frames=max(1, header.number_of_frames or 1),
        instance_number=header.instance_number,
        echo_number=header.echo_number,
    )


@lru_cache(maxsize=1024)
def _hashed(text: str) -> str:
    plain = " ".join(text.split())
    return hashlib.blake2b(plain.encode(), digest_size=8).hexdigest() if plain else ""


@lru_cache(maxsize=1024)
def _hashed_words(text: str) -> frozenset[str]:
    words = text.partition("=")[0].replace("^", " ").replace(",", " ").casefold().split()
    return frozenset(map(_hashed, words))


def _values(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip().upper() for part in (text or "").split("\\") if part.strip())


def _positive(value: float | None) -> float | None:
    """A measured number; scanners write 0 where there is nothing to write."""
    return value if value is not None and value > 0 else None


def _is_agent(text: str) -> bool:
    """Whether a text names a contrast agent; many scanners write that there was none."""
    words = text.strip().lower().replace(" ", "_")
    return bool(words) and words not in _NO_AGENT


def _modality(sop_class: str) -> str:
    if sop_class.startswith(_ENHANCED_MR):
        return "MR"
    for start, modality in _MODALITIES.items():
        if sop_class == start or sop_class.startswith(start if start.endswith(".") else f"{start}."):
            return modality
    return ""


def read_headers(
    paths: list[str], n_threads: int | None = None, on_progress: Callable[[int], None] = lambda n: None
) -> Iterator[ImageHeader | str | None]:
    """Read the headers of files by several threads; the answers come in the order of ``paths``.

    The compiled walk over a header and the waiting for a disk let other threads run.

    Args:
        paths: of the files.
        n_threads: None for two a core, between 4 and 16.
        on_progress: is told how many files are done.
    """
    count = n_threads or min(16, max(4, 2 * (os.cpu_count() or 1)))
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    n_done = 0
    with ThreadPoolExecutor(count, thread_name_prefix="lumbar-index") as pool:
        waiting = iter(chunks)
        running = [pool.submit(_read_chunk, chunk) for chunk in islice(waiting, 2 * count)]
        while running:
            entries = running.pop(0).result()
            running += [pool.submit(_read_chunk, chunk) for chunk in islice(waiting, 1)]
            n_done += len(entries)
            on_progress(n_done)
            yield from entries


def _read_chunk(paths: list[str]) -> list[ImageHeader | str | None]:
    return [read_image_header(path) for path in paths]
