"""A cohort with bright discs and a recipe of tiny networks: a whole training in seconds.

Run as a script it is ``python -m lumbar_train`` with the recipe ``tiny`` known besides, also under ``torchrun``.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from lumbar import labels
from lumbar.config import (
    AggregatorConfig,
    AxialClassifierConfig,
    BackboneConfig,
    HeatmapConfig,
    SagittalClassifierConfig,
    SliceRoleConfig,
)
from lumbar_train.data.augment import AugmentConfig
from lumbar_train.recipes import RECIPES, Fit, Recipe, StageRecipe
from series_writer import AXIAL, SAGITTAL
from slice_writer import write_slice

SIZE = 40
STEP_MM = 5.0
SMALL = BackboneConfig("resnet10t", channels=(8, 8, 8, 16), stem_width=16, norm="group")
CROPS = {"size": 24, "window": 3, "hidden": 8, "level_embedding": 4, "position_embedding": 4}


def write_cohort(root: Path, n_studies: int = 8) -> Path:
    """Studies 201, 202, …: discs are bright spots 35 mm apart, brighter the higher their grade."""
    rng = np.random.default_rng(3)
    series, points, rows = [], [], []
    for study in range(201, 201 + n_studies):
        grades = rng.choice(3, len(labels.COLUMNS), p=(0.5, 0.3, 0.2))
        rows.append(
            {"study_id": study} | {c: labels.SEVERITIES[g] for c, g in zip(labels.COLUMNS, grades, strict=True)}
        )
        for place, name in enumerate(labels.DESCRIPTIONS):
            series.append({"study_id": study, "series_id": study * 10 + place, "series_description": name})
            points += _write_series(root, study, study * 10 + place, name, grades.reshape(5, 5), rng)
    pd.DataFrame(rows).to_csv(root / "train.csv", index=False)
    pd.DataFrame(series).to_csv(root / "train_series_descriptions.csv", index=False)
    pd.DataFrame(points).to_csv(root / "train_label_coordinates.csv", index=False)
    return root


def _write_series(root: Path, study: int, sid: int, name: str, grades: np.ndarray, rng) -> list[dict]:
    is_axial = name == labels.AXIAL_T2
    half = (SIZE - 1) / 2 * STEP_MM
    shift = int(rng.integers(-1, 2))
    yy, xx = np.mgrid[:SIZE, :SIZE]
    points = []
    for i in range(10 if is_axial else 5):
        pixels = rng.integers(0, 300, (SIZE, SIZE)).astype(float)
        for level in range(5):
            y = 6.0 + 7 * level + shift
            # axial slices lie 17.5 mm apart, every other one in a disc; sagittal ones 12 mm apart, canal in the third
            spots = [((18.5 + 3, 19.5), 3), ((18.5 - 3, 19.5), 4)] if is_axial and i == 9 - 2 * level else []
            spots = spots or ([((19.5, y), 0)] if not is_axial else [])
            for (x, y_spot), condition in spots:
                height = 1500 + 700 * grades[condition, level]
                pixels += height * np.exp(-0.5 * ((xx - x) ** 2 + (yy - y_spot) ** 2) / 1.2**2)
                side = {1: "right", 3: "left"}.get(i)
                if name == labels.SAGITTAL_T1:
                    if side is None:
                        continue
                    condition = 1 if side == "left" else 2
                elif not is_axial and i != 2:
                    continue
                points.append(
                    {
                        "study_id": study, "series_id": sid, "instance_number": i + 1,
                        "condition": labels.CONDITION_TITLES[condition],
                        "level": labels.level_title(labels.LEVELS[level]), "x": x, "y": y_spot,
                    }
                )  # fmt: skip
        top = half - (6.0 + shift) * STEP_MM
        origin = (-half, -half, top - 7 * STEP_MM * (9 - i) / 2) if is_axial else (-24.0 + 12 * i, -half, half)
        path = root / "train_images" / str(study) / str(sid) / f"{i + 1}.dcm"
        write_slice(
            path, np.clip(pixels, 0, 4095), number=i + 1, origin=origin, spacing_mm=STEP_MM,
            orientation=AXIAL if is_axial else SAGITTAL,
        )  # fmt: skip
    return points


def tiny() -> Recipe:
    augment = AugmentConfig(shift_mm=4.0, turn_deg=3.0, zoom=0.05, hole=0.0)
    fit = Fit(epochs=2, lr=3e-3, batch=4, warmup=0.0)
    points = HeatmapConfig(points=11, size=40, mm_per_px=5.0, context=1, widths=(8, 16), segments=0, sigma_mm=12.0)
    return Recipe(
        name="tiny",
        n_folds=2,
        stages={
            "sagittal_xy": StageRecipe(points, replace(fit, epochs=8, repeats=6, lr=1e-2), augment),
            "sagittal_z": StageRecipe(SliceRoleConfig(SMALL, size=24, hidden=8), fit, augment),
            "axial_xy": StageRecipe(replace(points, points=2), fit, augment),
            "sagittal_classifier": StageRecipe(
                SagittalClassifierConfig(SMALL, share_sides=True, **CROPS), fit, augment
            ),
            "axial_subarticular": StageRecipe(AxialClassifierConfig(SMALL, **CROPS), fit, augment),
            "axial_all": StageRecipe(AxialClassifierConfig(SMALL, conditions=(0, 1, 2, 3, 4), **CROPS), fit, augment),
            "aggregator": StageRecipe(AggregatorConfig(hidden=8), Fit(epochs=5, lr=1e-3, batch=100, weight_decay=1.0)),
        },
    )


RECIPES["tiny"] = tiny


def train(data: Path, out: Path, *more: str) -> int:
    """The command line ``train`` with the tiny recipe, on the CPU, in float32 and in this process; its exit code."""
    from lumbar_train.__main__ import main

    command = ["train", "--data", str(data), "--recipe", "tiny", "--out", str(out), "--workers", "0"]
    return main([*command, "--device", "cpu", "--amp", "off", *more])


def quick(patch: Any) -> None:
    """One thread, and no page at the end, which is the dearest part of a tiny run."""
    from lumbar_train.pipeline import carry_out

    patch.setattr(os, "cpu_count", lambda: 1)
    patch.setattr(carry_out, "report_on", lambda run, data: (None, None))


if __name__ == "__main__":
    from lumbar_train.__main__ import command

    torch.set_num_threads(1)
    sys.exit(command())


def empty_competition(folder: Path) -> Path:
    """Make ``folder`` a competition's training folder in which no study is."""
    (folder / "train_images").mkdir(parents=True)
    (folder / "train_series_descriptions.csv").write_text("study_id,series_id,series_description\n")
    return folder
