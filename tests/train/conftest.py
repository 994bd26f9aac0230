"""A tiny cohort in the competition's layout, written by pydicom, for tests to spoil."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lumbar import labels
from series_writer import AXIAL, SAGITTAL
from slice_writer import write_slice

SIZE = 32
N_STUDIES = 6


def _write_study(root: Path, study: int, rng: np.random.Generator) -> tuple[list[dict], list[dict]]:
    series, points = [], []
    for place, name in enumerate(labels.DESCRIPTIONS):
        sid = study * 10 + place
        series.append({"study_id": study, "series_id": sid, "series_description": name})
        is_axial = name == labels.AXIAL_T2
        for i in range(10 if is_axial else 7):
            origin = (-64.0, -64.0, 50.0 - 10 * i) if is_axial else (-24.0 + 8 * i, -64.0, 64.0)
            pixels = rng.integers(0, 4000, (SIZE, SIZE))
            write_slice(
                root / "train_images" / str(study) / str(sid) / f"{i + 1}.dcm", pixels, number=i + 1, origin=origin,
                orientation=AXIAL if is_axial else SAGITTAL, spacing_mm=4.0,
            )  # fmt: skip
        for k, level in enumerate(labels.LEVELS):
            y = 6.0 + 5 * k
            if is_axial:
                spots = [(3, 2 * k + 1, 20.0, 16.0), (4, 2 * k + 1, 12.0, 16.0)]
            elif name == labels.SAGITTAL_T1:
                spots = [(1, 6, 17.0, y), (2, 2, 17.0, y)]
            else:
                spots = [(0, 4, 16.0, y)]
            for condition, instance, x, y_px in spots:
                points.append(
                    {
                        "study_id": study, "series_id": sid, "instance_number": instance,
                        "condition": labels.CONDITION_TITLES[condition], "level": labels.level_title(level),
                        "x": x, "y": y_px,
                    }
                )  # fmt: skip
    return series, points


@pytest.fixture(scope="session")
def pristine_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(5)
    series, points, rows = [], [], []
    for study in range(101, 101 + N_STUDIES):
        more_series, more_points = _write_study(root, study, rng)
        series += more_series
        points += more_points
        grades = rng.choice(3, len(labels.COLUMNS), p=(0.7, 0.2, 0.1))
        named = {c: labels.SEVERITIES[g] for c, g in zip(labels.COLUMNS, grades, strict=True)}
        rows.append({"study_id": study} | named)
    rows[1]["left_subarticular_stenosis_l1_l2"] = None
    pd.DataFrame(rows).to_csv(root / "train.csv", index=False)
    pd.DataFrame(series).to_csv(root / "train_series_descriptions.csv", index=False)
    pd.DataFrame(points).to_csv(root / "train_label_coordinates.csv", index=False)
    return root


@pytest.fixture
def root(pristine_root: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil; slices are hard links, so the copy costs nothing."""
    target = tmp_path / "cohort"

    def link(source: str, copy: str) -> None:
        Path(copy).hardlink_to(source)

    shutil.copytree(pristine_root / "train_images", target / "train_images", copy_function=link)
    for table in pristine_root.glob("*.csv"):
        shutil.copy(table, target)
    return target


@pytest.fixture(scope="session")
def tiny_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight studies that the tiny recipe can be trained on; in a folder with a space and an umlaut, as users have."""
    import train_tiny

    return train_tiny.write_cohort(tmp_path_factory.mktemp("tiny") / "Jürgens Kohorte")


@pytest.fixture
def tiny_data(tiny_cohort: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil; slices are hard links."""
    return shutil.copytree(tiny_cohort, tmp_path / "data", copy_function=lambda a, b: Path(b).hardlink_to(a))
