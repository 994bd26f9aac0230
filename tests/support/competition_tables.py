"""Tables of the competition's size with its oddities (COMPETITION.md section 1), over images of 16 pixels a side.

Counts are those of the public tables: 1,975 studies, 6,294 series, 572 of 49,375 labels missing over 185 studies, two
studies without T1 and one without T2, 335 with a second axial series and 7 with a second T1. A quarter of the axial
series do not reach all five levels; instance numbers run backwards in every eighth series, have gaps, and reach 5,049;
one pair of points has its sides exchanged, and some T1 series have both sides marked on one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from lumbar.labels import AXIAL_T2, COLUMNS, CONDITION_TITLES, LEVELS, SAGITTAL_T1, SAGITTAL_T2, SEVERITIES, level_title

N_STUDIES, N_SECOND_AXIAL, N_SECOND_T1, N_MISSING, N_WITH_MISSING = 1975, 335, 7, 572, 185
SIZE, STEP_MM = 16, 10.0  # 160 mm: all five levels
N_SAGITTAL, GAP_MM = 5, 8.0
FIRST_ID = 4_003_253
LEVEL_MM = [60.0 - 30.0 * k for k in range(5)]
COSINES = {"sagittal": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0), "axial": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)}
_NUMBER, _MAGIC = b"777777", 0xABC
# Severe, moderate and normal labels: shares of the public tables by condition
_SHARES = [(8664, 736, 470), (7672, 1794, 399), (7685, 1770, 380), (6864, 1835, 913), (6869, 1825, 927)]


def _template(origin: tuple[float, ...], cosines: tuple[float, ...]) -> tuple[bytes, int]:
    """The bytes of a slice, and where its pixels begin."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid(entropy_srcs=["16"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    slice_ = Dataset()
    slice_.file_meta = meta
    slice_.SOPClassUID, slice_.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    slice_.InstanceNumber = int(_NUMBER)
    slice_.Rows = slice_.Columns = SIZE
    slice_.ImagePositionPatient, slice_.ImageOrientationPatient = list(origin), list(cosines)
    slice_.PixelSpacing = [STEP_MM, STEP_MM]
    slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
    slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 12, 11, 0
    slice_.PixelData = np.full(SIZE * SIZE, _MAGIC, "<u2").tobytes()
    buffer = DicomBytesIO()
    slice_.save_as(buffer, enforce_file_format=True)
    content = buffer.getvalue()
    return content, content.index(np.full(SIZE * SIZE, _MAGIC, "<u2").tobytes())


class _Writer:
    def __init__(self, root: Path, rng: np.random.Generator) -> None:
        self.root, self.rng = root, rng
        half = SIZE * STEP_MM / 2
        self.sagittal = [
            _template((GAP_MM * (i - N_SAGITTAL // 2) * 2, -half, half), COSINES["sagittal"]) for i in range(N_SAGITTAL)
        ]
        self.axial = [_template((-half, -half, z), COSINES["axial"]) for z in LEVEL_MM]
        self.pixels = rng.integers(0, 4000, (512, SIZE * SIZE)).astype("<u2")
        self.rows: list[tuple] = []

    def series(self, study: int, series_id: int, description: str) -> list[int]:
        """Write a series; gives the instance number of each slice in the order of space, 0 where there is none."""
        self.rows.append((study, series_id, description))
        parts = self.axial if description == AXIAL_T2 else self.sagittal
        order = np.arange(len(parts))
        if self.rng.random() < 1 / 8:
            order = order[::-1]
        first, step = 1 + int(self.rng.random() < 0.02) * 5044, 1 + int(self.rng.random() < 0.1)
        missing = int(self.rng.integers(5)) if description == AXIAL_T2 and self.rng.random() < 0.25 else -1
        folder = self.root / "train_images" / str(study) / str(series_id)
        folder.mkdir(parents=True)
        numbers = []
        for place, (content, start) in enumerate(parts):
            number = first + step * int(order[place])
            pixels = self.pixels[int(self.rng.integers(512))].tobytes()
            if place == missing:
                numbers.append(0)
                continue
            text = str(number).encode().ljust(6)
            file = content[:start].replace(_NUMBER, text) + pixels + content[start + len(pixels) :]
            (folder / f"{number}.dcm").write_bytes(file)
            numbers.append(number)
        return numbers


def write_competition_size(root: Path, n_studies: int = N_STUDIES, seed: int = 0) -> Path:
    """Write the tables and their images; the same seed gives the same bytes."""
    rng = np.random.default_rng(seed)
    writer = _Writer(root, rng)
    ids = FIRST_ID + 1000 * np.arange(n_studies)
    shuffled = rng.permutation(n_studies)
    second_axial = set(shuffled[: N_SECOND_AXIAL * n_studies // N_STUDIES])
    second_t1 = set(shuffled[::-1][: max(1, N_SECOND_T1 * n_studies // N_STUDIES)])
    no_t1, no_t2 = {0, 1}, {2}
    points: list[tuple] = []
    for k, study in enumerate(map(int, ids)):
        descriptions = [] if k in no_t1 else [SAGITTAL_T1] * (2 if k in second_t1 else 1)
        descriptions += [] if k in no_t2 else [SAGITTAL_T2]
        descriptions += [AXIAL_T2] * (2 if k in second_axial else 1)
        for place, description in enumerate(descriptions):
            numbers = writer.series(study, study * 10 + place, description)
            points += _points(
                study, study * 10 + place, description, numbers, rng, is_odd=k % 40 == 7, is_swapped=k == 5
            )
    columns = ["study_id", "series_id", "instance_number", "condition", "level", "x", "y"]
    pd.DataFrame(points, columns=columns).to_csv(root / "train_label_coordinates.csv", index=False)
    series = pd.DataFrame(writer.rows, columns=["study_id", "series_id", "series_description"])
    series.to_csv(root / "train_series_descriptions.csv", index=False)
    _labels(ids, rng).to_csv(root / "train.csv", index=False)
    return root


def _points(study, series, description, numbers, rng, *, is_odd: bool, is_swapped: bool) -> list[tuple]:
    """A reader's points: canal on T2, foramina on T1, recesses on axial slices; some of them odd."""
    rows = []
    for level, name in enumerate(LEVELS):
        noise = rng.normal(0, 0.15, 2)
        y = (80.0 - LEVEL_MM[level]) / STEP_MM + noise[1]
        if description == SAGITTAL_T2:
            spots = [(0, N_SAGITTAL // 2, 7.5, y)]
        elif description == SAGITTAL_T1:
            spots = [(1, 3, 7.0, y), (2, 3 if is_odd else 1, 7.0, y)]
        else:
            left, right = (7.1, 8.9) if is_swapped else (8.9, 7.1)
            spots = [(3, level, left, 8.0), (4, level, right, 8.0)]
        if is_odd and description != AXIAL_T2:
            spots = [(c, s, x, y + 4.0) for c, s, x, y in spots]  # points of another level: the filter's prey
        for condition, place, x, y_px in spots:
            if numbers[place]:
                title = CONDITION_TITLES[condition]
                rows.append((study, series, numbers[place], title, level_title(name), x + noise[0], min(y_px, 15.4)))
    return rows


def _labels(ids: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    shares = [np.array(row) / sum(row) for row in _SHARES for _ in range(5)]
    grades = np.stack([rng.choice(3, len(ids), p=share) for share in shares], axis=1)
    words = np.array([*SEVERITIES, None], dtype=object)
    n_missing = N_MISSING * len(ids) // N_STUDIES
    studies = rng.permutation(len(ids))[: max(1, N_WITH_MISSING * len(ids) // N_STUDIES)]
    pairs = [(k, int(c)) for k in studies for c in rng.permutation(25)]
    chosen = [pairs[i] for i in rng.permutation(len(pairs))[:n_missing]]
    for k, column in chosen:
        grades[k, column] = 3
    frame = pd.DataFrame(words[grades], columns=list(COLUMNS))
    frame.insert(0, "study_id", ids)
    return frame
