"""Small studies made of smooth blobs, with known points, for tests of the stages."""

from __future__ import annotations

import numpy as np

from lumbar.dicom import Stack
from lumbar.labels import AXIAL_T2, LEVELS, SAGITTAL_T1, SAGITTAL_T2, SIDES
from lumbar.stages.points import AxialLevel, Localisation, SagittalPoint, as_xyz
from lumbar.study import Study

LEVELS_MM = {level: (1.0, 2.0 * k, 66.0 - 33.0 * k) for k, level in enumerate(LEVELS)}


def stack_of(series_id: str, kind: str, seed: int, *, n: int = 9, size: int = 96, spacing: float = 2.2) -> Stack:
    """A stack around the patient's origin: 'sagittal' (5 mm apart) or 'axial' (6 mm apart), smooth random pixels."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((n, size // 8, size // 8)) * 800 + 50
    volume = coarse.repeat(8, axis=1).repeat(8, axis=2).astype(np.float32)
    half = (size - 1) / 2 * spacing
    if kind == "sagittal":
        origins = [[5.0 * (i - (n - 1) / 2), -half, half] for i in range(n)]
        row, column = (0.0, 0.0, -spacing), (0.0, spacing, 0.0)
    else:
        n_axial = len(volume)
        origins = [[-half, -half, 11.0 * (i - (n_axial - 1) / 2)] for i in range(n_axial)]
        row, column = (0.0, spacing, 0.0), (spacing, 0.0, 0.0)
    return Stack(
        series_id=series_id,
        volume=volume,
        origins_mm=np.array(origins),
        row_mm=np.array(row),
        column_mm=np.array(column),
        instance_numbers=list(range(1, n + 1)),
    )


def study_of(seed: int = 0) -> Study:
    """A study with one T1, one T2 and one axial series."""
    return Study(
        study_id=7,
        series={
            SAGITTAL_T1: [stack_of("t1", "sagittal", seed)],
            SAGITTAL_T2: [stack_of("t2", "sagittal", seed + 1)],
            AXIAL_T2: [stack_of("ax", "axial", seed + 2, n=17)],
        },
    )


def mirrored(study: Study) -> Study:
    """The same patient mirrored at x = 0: sagittal slices in the other order, axial images flipped."""
    series: dict[str, list[Stack]] = {}
    for description, stacks in study.series.items():
        series[description] = []
        for stack in stacks:
            is_axial = description == AXIAL_T2
            volume = stack.volume[:, :, ::-1].copy() if is_axial else stack.volume[::-1].copy()
            series[description].append(
                Stack(
                    series_id=stack.series_id,
                    volume=volume,
                    origins_mm=stack.origins_mm,
                    row_mm=stack.row_mm,
                    column_mm=stack.column_mm,
                    instance_numbers=stack.instance_numbers,
                )
            )
    return Study(study_id=study.study_id, series=series)


def localisation_of(study: Study, *, is_mirrored: bool = False) -> Localisation:
    """Points of ``LEVELS_MM`` on every series; with ``is_mirrored`` those of the mirrored patient."""
    sign = -1.0 if is_mirrored else 1.0
    localisation = Localisation(levels_mm={k: (sign * x, y, z) for k, (x, y, z) in LEVELS_MM.items()})
    for description in (SAGITTAL_T2, SAGITTAL_T1):
        stack = study.series[description][0]
        for level, xyz in localisation.levels_mm.items():
            for side in (None, *SIDES):
                lateral = {None: 0.0, "left": 16.0, "right": -16.0}[side]
                point = np.add(xyz, (lateral, -6.0 if side else 0.0, 0.0))
                s, row, column = stack.to_voxel(point)
                index = int(np.clip(np.round(s), 0, len(stack.volume) - 1))
                localisation.sagittal_points.append(
                    SagittalPoint(
                        stack.series_id,
                        level,
                        side,
                        stack.instance_numbers[index],
                        float(column),
                        float(row),
                        as_xyz(point),
                        0.9,
                        slice_index=index,
                        description=description,
                    )
                )
    stack = study.series[AXIAL_T2][0]
    for level, xyz in localisation.levels_mm.items():
        s, row, column = stack.to_voxel(np.array(xyz))
        index = round(float(s))
        if not 0 <= index < len(stack.volume):
            continue
        step = 9.0 / stack.spacing_mm[1]
        localisation.axial_levels.append(
            AxialLevel(
                stack.series_id,
                level,
                stack.instance_numbers[index],
                0.0,
                (float(column) + step, float(row)),
                (float(column) - step, float(row)),
                slice_index=index,
            )
        )
    return localisation


def images_and_mask(crops):
    """Of one level's ``Crops`` or of all levels' ``LevelTensors``."""
    return crops.images, crops.mask
