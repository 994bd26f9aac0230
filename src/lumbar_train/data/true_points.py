"""A study localised by its true points: what the classifiers would do if localisation were perfect."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lumbar.dicom import Stack
from lumbar.geometry import is_inside, plane_distance_mm, project
from lumbar.labels import AXIAL_T2, LEVELS, SAGITTAL_T1, SAGITTAL_T2, SIDES, SPINAL
from lumbar.stages.localise import axial_reach_mm
from lumbar.stages.place import append_point
from lumbar.stages.points import AxialLevel, Localisation, as_xyz
from lumbar.study import Study

Array = NDArray[np.float64]
_XYZ = ["x_mm", "y_mm", "z_mm"]


def true_localisation(study: Study, truth: pd.DataFrame) -> Localisation:
    """The localisation that the true points give, in the form that the stages hand on.

    Args:
        study: its stacks.
        truth: the study's rows of ``point_errors.truth_points``.
    """
    canal, foramen, lateral = _by_kind(truth)
    localisation = Localisation(levels_mm={level: as_xyz(xyz) for level, xyz in canal.items()})
    for description in (SAGITTAL_T2, SAGITTAL_T1):
        for number, stack in enumerate(study.series[description]):
            for level in canal:
                sides = {None: canal[level]} | {side: foramen.get((level, side)) for side in SIDES}
                for side, xyz in sides.items():
                    if xyz is not None:
                        append_point(localisation, stack, number, description, level, side, xyz, None, 1.0)
    for number, stack in enumerate(study.series[AXIAL_T2]):
        for level, xyz in canal.items():
            entry = _axial(stack, number, level, xyz, [lateral.get((level, side)) for side in SIDES])
            if entry is not None:
                localisation.axial_levels.append(entry)
    return localisation


def _by_kind(
    truth: pd.DataFrame,
) -> tuple[dict[str, Array], dict[tuple[str, str], Array], dict[tuple[str, str], Array]]:
    """Canal points by level; foraminal and subarticular points by level and side.

    A level without a canal point takes the middle between its sides.
    """
    canal: dict[str, Array] = {}
    foramen: dict[tuple[str, str], Array] = {}
    lateral: dict[tuple[str, str], Array] = {}
    for row in truth.to_dict("records"):
        xyz = np.array([row[name] for name in _XYZ], dtype=float)
        if row["condition"] == SPINAL:
            canal[row["level"]] = xyz
        else:
            kind = foramen if "foraminal" in row["condition"] else lateral
            kind[row["level"], row["side"]] = xyz
    for level in LEVELS:
        for kind in (lateral, foramen):
            pair = [kind[level, side] for side in SIDES if (level, side) in kind]
            if level not in canal and len(pair) == 2:
                canal[level] = np.mean(pair, axis=0)
    return {level: canal[level] for level in LEVELS if level in canal}, foramen, lateral


def _axial(stack: Stack, number: int, level: str, centre: Array, sides: list[Array | None]) -> AxialLevel | None:
    distances = plane_distance_mm(stack, centre)
    index = int(np.abs(distances).argmin())
    _, x, y = project(stack, centre)
    if abs(distances[index]) >= axial_reach_mm(stack) or not is_inside(stack, x, y):
        return None
    points = []
    for xyz, sign in zip(sides, (1.0, -1.0), strict=True):
        # without a true point, where it lies on average: 9 mm to its side of the canal
        target = centre + np.array([sign * 9.0, 0.0, 0.0]) if xyz is None else xyz
        _, x, y = project(stack, target)
        points.append((float(x), float(y)))
    return AxialLevel(
        series_id=stack.series_id,
        level=level,
        instance_number=stack.instance_numbers[index],
        distance_mm=float(distances[index]),
        left_px=points[0],
        right_px=points[1],
        stack=number,
        slice_index=index,
    )
