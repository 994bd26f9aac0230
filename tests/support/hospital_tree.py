"""A folder of DICOM as a PACS or a CD leaves it: text ids, scrambled names, and what else lies between the series."""

from __future__ import annotations

from pathlib import Path
from zlib import crc32

import numpy as np
from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from lumbar.labels import AXIAL_T2, SAGITTAL_T1, SAGITTAL_T2
from series_writer import AXIAL, CORONAL, SAGITTAL

MR = "1.2.840.10008.5.1.4.1.1.4"
T1 = {"RepetitionTime": 560, "EchoTime": 11, "ScanningSequence": "SE", "EchoTrainLength": 3}
T2 = {"RepetitionTime": 3600, "EchoTime": 104, "ScanningSequence": "SE", "EchoTrainLength": 17}
STIR = {"RepetitionTime": 4200, "EchoTime": 38, "InversionTime": 160, "ScanningSequence": ["SE", "IR"]}
PD_FS = {"RepetitionTime": 2900, "EchoTime": 32, "ScanningSequence": "SE", "EchoTrainLength": 7}
SCOUT = {"RepetitionTime": 7, "EchoTime": 3, "ScanningSequence": "GR", "FlipAngle": 20}
ORIGINAL = ["ORIGINAL", "PRIMARY", "M", "ND"]
TIMES = {SAGITTAL_T1: T1, SAGITTAL_T2: T2, AXIAL_T2: T2}


def data_set(study, series, number, *, plane=SAGITTAL, at=0.0, pixels=None, spacing=5.0, **attributes):
    """One MR slice; ``attributes`` are DICOM keywords, those with None are left out."""
    with disable_value_validation():  # UIDs that are texts, as some archives have them
        return _data_set(study, series, number, plane, at, pixels, spacing, attributes)


def _data_set(study, series, number, plane, at, pixels, spacing, attributes):
    pixels = np.full((48, 48), 50, np.uint16) if pixels is None else pixels
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = attributes.get("SOPClassUID", MR), ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = _uid(study, series, number)
    data = Dataset()
    data.file_meta = meta
    half = spacing * pixels.shape[0] / 2
    row, column = np.array(plane[:3]), np.array(plane[3:])
    origin = at * np.cross(row, column) - half * row - half * column
    values = {
        "SpecificCharacterSet": "ISO_IR 192",
        "SOPClassUID": MR,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Modality": "MR",
        "StudyInstanceUID": study,
        "SeriesInstanceUID": series,
        "InstanceNumber": number,
        "ImageType": ORIGINAL,
        "PatientID": f"patient of {study}",
        "PatientName": "Doe^Jane",
        "ImagePositionPatient": [f"{value:.6g}" for value in origin],
        "ImageOrientationPatient": list(plane),
        "PixelSpacing": [spacing, spacing],
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "PixelData": pixels.astype("<u2").tobytes(),
    } | attributes
    for keyword, value in values.items():
        if value is not None:
            setattr(data, keyword, value)
    return data


def write(path, data):
    """Save a data set, and make its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def write_series(folder, study, series, n_slices=4, *, names="IM{number:05d}", **options):
    """Slices of one series; returns the folder."""
    data = data_set(study, series, 0, **options)
    row, column = np.array(data.ImageOrientationPatient[:3]), np.array(data.ImageOrientationPatient[3:])
    origin = np.array(data.ImagePositionPatient, dtype=float)
    for number in range(1, n_slices + 1):
        data.InstanceNumber = number
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = _uid(study, series, number)
        data.ImagePositionPatient = [f"{value:.6g}" for value in origin + 5.0 * number * np.cross(row, column)]
        write(folder / names.format(number=number), data)
    return folder


def _uid(*parts):
    return f"1.2.{crc32(repr(parts).encode())}"


def write_study(folder, study, *, with_words=False):
    """A study with everything that a hospital leaves in it; returns series UID → kind, empty where it is left out."""
    kinds = {}

    def add(name, kind="", **options):
        kinds[f"{study}.{name}"] = kind
        if not with_words:
            options.setdefault("SeriesDescription", None)
        write_series(folder / f"S{len(kinds):06d}", study, f"{study}.{name}", 3, **options)

    add("t1", SAGITTAL_T1, SeriesDescription="t1_tse_sag", **T1)
    add("t2", SAGITTAL_T2, SeriesDescription="t2_tse_dixon_sag_in", **T2 | {"ImageType": [*ORIGINAL, "IN_PHASE"]})
    add("stir", SAGITTAL_T2, SeriesDescription="STIR Sag", **STIR)
    add("axial", AXIAL_T2, SeriesDescription="T2 tra L1-S1", plane=AXIAL, **T2)
    for part in ("WATER", "FAT", "OPP_PHASE"):
        add(f"dixon.{part}", ImageType=["DERIVED", "PRIMARY", "DIXON", part], **T2)
    for plane in (SAGITTAL, AXIAL, CORONAL):
        add_scout = data_set(study, f"{study}.scout", 7 + plane.index(1.0), plane=plane, spacing=8.0, **SCOUT)
        write(folder / "SCOUT" / f"{plane.index(1.0)}{plane.index(-1.0) if -1.0 in plane else 9}", add_scout)
    kinds[f"{study}.scout"] = ""
    add("coronal", plane=CORONAL, **T2)
    add("contrast", ContrastBolusAgent="Gadobutrol", **T1)
    add("knee", BodyPartExamined="KNEE", spacing=3.3, **PD_FS)
    add("kneelike", spacing=3.3, **T2)  # 158 mm
    add("pd", **PD_FS)
    add("axial t1", plane=AXIAL, **T1)
    add("diffusion", **T2 | {"ScanningSequence": "EP"})
    add("mpr", ImageType=["DERIVED", "SECONDARY", "MPR"], **T2)
    return kinds


def scramble(root, tree, times=TIMES, descriptions=None):
    """A competition's studies as a hospital's tree: returns the text id of each study.

    Args:
        root: a competition's folder of the test split.
        tree: the folder to make.
        times: acquisition attributes by description; empty leaves them out.
        descriptions: (study, series) → description, as the table of series has it.
    """
    with disable_value_validation():
        return _scramble(root, tree, times, descriptions)


def _scramble(root, tree, times, descriptions):
    ids = {}
    rng = np.random.default_rng(5)
    for place, (study_id, series_id, description) in enumerate(descriptions):
        study = ids.setdefault(study_id, f"CASE {study_id}/A")
        files = sorted((root / "test_images" / str(study_id) / str(series_id)).glob("*.dcm"))
        for file, number in zip(files, rng.permutation(10 * len(files)), strict=False):
            data = dcmread(file)
            data.StudyInstanceUID, data.SeriesInstanceUID, data.PatientID = study, f"{series_id}.9", f"p{study_id}"
            data.Modality, data.ImageType = "MR", ORIGINAL
            for keyword, value in times.get(description, {}).items():
                setattr(data, keyword, value)
            write(tree / f"PA{study_id % 3:03d}" / f"{place % 2}" / f"{place}_{number:08d}", data)
    return ids


def add_others(tree, ids):
    """What else lies in a hospital's tree, for the studies of ``scramble``: left out, and files that are there twice.

    Of each study a localiser, four Dixon parts beside its T2, a knee by its words and one by its field of view.
    """
    with disable_value_validation():
        _add_others(tree, ids)


def _add_others(tree, ids):
    first = {}
    for path in sorted(path for path in tree.rglob("*") if path.is_file()):
        first.setdefault(dcmread(path, specific_tags=["StudyInstanceUID"]).StudyInstanceUID, path)
    for study_id, study in ids.items():
        folder, patient = tree / f"PA{study_id % 3:03d}" / "x", {"PatientID": f"p{study_id}"}
        write_series(folder / "s", study, f"{study}.scout", 3, spacing=8.0, **patient, **SCOUT)
        for part in ("WATER", "FAT", "OPP_PHASE", "IN_PHASE"):
            image_type = {"ImageType": ["DERIVED", "PRIMARY", "DIXON", part]}
            write_series(folder / part, study, f"{study}.{part}", 3, **patient, **image_type, **T2)
        write_series(folder / "k", study, f"{study}.knee", 3, BodyPartExamined="KNEE", **patient, **PD_FS)
        write_series(folder / "j", study, f"{study}.joint", 3, spacing=3.3, **patient, **T2)
        write(tree / "again" / f"{study_id}", dcmread(first[study]))
