"""Tiny but whole DICOM studies in the competition's layout, written with pydicom."""

import numpy as np
import pandas as pd
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from lumbar.labels import AXIAL_T2, DESCRIPTIONS, SAGITTAL_T1, SAGITTAL_T2, SEVERITY_COLUMNS, row_ids

SIZE = 64


def write_slice(path, pixels, origin, row_cosines, column_cosines, spacing, number):
    """One uncompressed 16-bit slice with the tags that geometry needs and no others."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.Rows, data.Columns = pixels.shape
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.InstanceNumber = number
    data.ImagePositionPatient = [float(value) for value in origin]
    data.ImageOrientationPatient = [float(value) for value in (*row_cosines, *column_cosines)]
    data.PixelSpacing = [spacing, spacing]
    data.PixelData = pixels.astype("<u2").tobytes()
    pydicom.dcmwrite(path, data, enforce_file_format=True)


def anatomy(x, y, z, rng):
    """Intensity at patient points: a bright canal behind a column of vertebrae with dark discs, and noise."""
    canal = 900.0 * np.exp(-(x**2 + (y - 18.0) ** 2) / 60.0)
    bone = 500.0 * (np.abs(x) < 25) * (np.abs(y + 8) < 20) * (np.mod(z, 36.0) > 9.0)
    return np.clip(150.0 + canal + bone + rng.normal(0, 20.0, x.shape), 0, 4095)


def write_study(folder, first_series_id, seed, descriptions=DESCRIPTIONS):
    """Series folders of a study; returns their rows of the table of series."""
    rng = np.random.default_rng(seed)
    rows = []
    for k, description in enumerate(descriptions):
        series_id = first_series_id + k
        target = folder / str(series_id)
        target.mkdir(parents=True)
        is_axial = description == AXIAL_T2
        spacing = 2.4 if is_axial else 3.4
        steps = (np.arange(SIZE) - SIZE / 2) * spacing
        positions = np.arange(-84.0, 90.0, 6.0) if is_axial else np.arange(-30.0, 31.0, 5.0)
        for number, at in enumerate(positions, start=1):
            if is_axial:
                y, x = np.meshgrid(steps, steps, indexing="ij")
                pixels = anatomy(x, y, np.full_like(x, at), rng)
                write_slice(target / f"{number}.dcm", pixels, (steps[0], steps[0], at), (1, 0, 0), (0, 1, 0), spacing,
                            number)  # fmt: skip
            else:
                down, y = np.meshgrid(-steps, steps, indexing="ij")
                pixels = anatomy(np.full_like(y, at), y, down, rng)
                write_slice(target / f"{number}.dcm", pixels, (at, steps[0], -steps[0]), (0, 1, 0), (0, 0, -1), spacing,
                            number)  # fmt: skip
        rows.append((series_id, description))
    return rows


def write_dicom_cohort(root, study_ids, split="test"):
    """A competition folder of such studies, with its tables."""
    rows = []
    for study_id in study_ids:
        folder = root / f"{split}_images" / str(study_id)
        rows += [(study_id, *row) for row in write_study(folder, study_id * 10, study_id)]
    table = pd.DataFrame(rows, columns=["study_id", "series_id", "series_description"])
    table.to_csv(root / f"{split}_series_descriptions.csv", index=False)
    frame = pd.DataFrame({"row_id": [name for study_id in study_ids for name in row_ids(study_id)]})
    frame[list(SEVERITY_COLUMNS)] = 1 / 3
    frame.to_csv(root / "sample_submission.csv", index=False)
    return root


SERIES = {SAGITTAL_T1: 0, SAGITTAL_T2: 1, AXIAL_T2: 2}  # last digit of a series' id
