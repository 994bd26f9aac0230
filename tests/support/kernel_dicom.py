"""Tiny but whole DICOM studies in the competition's layout, written with pydicom."""

import numpy as np
import pandas as pd

from lumbar.labels import AXIAL_T2, DESCRIPTIONS, SAGITTAL_T1, SAGITTAL_T2, SEVERITY_COLUMNS, row_ids
from series_writer import AXIAL, SAGITTAL
from slice_writer import write_slice

SIZE = 64


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
                write_slice(target / f"{number}.dcm", pixels, number=number, origin=(steps[0], steps[0], at),
                            orientation=AXIAL, spacing_mm=spacing)  # fmt: skip
            else:
                down, y = np.meshgrid(-steps, steps, indexing="ij")
                pixels = anatomy(np.full_like(y, at), y, down, rng)
                write_slice(target / f"{number}.dcm", pixels, number=number, origin=(at, steps[0], -steps[0]),
                            orientation=SAGITTAL, spacing_mm=spacing)  # fmt: skip
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
