"""The real CC0 study and its hand marks, as it is and as other scanners might have shown it."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from lumbar.labels import LEVELS, SAGITTAL_T1, SAGITTAL_T2, SIDES
from lumbar.study import Study, read_descriptions, read_study

REAL = Path(__file__).resolve().parents[3] / "shared" / "real" / "lumbar_cc0"
MARKS = json.loads((Path(__file__).parents[1] / "fixtures" / "real_marks.json").read_text())


def read_real():
    return read_study(REAL, "test", MARKS["study_id"], read_descriptions(REAL, "test"))


def sagittal(study):
    return [stack for name in (SAGITTAL_T2, SAGITTAL_T1) for stack in study.series[name]]


def marks_mm(study):
    """(side or None, level) → patient point (3,) as marked by hand."""
    stacks = {stack.series_id: stack for stack in sagittal(study)}
    out = {}
    for kind, side in (("canal", None), *((side, side) for side in SIDES)):
        stack = stacks[MARKS[kind]["series_id"]]
        for level in LEVELS:
            mark = MARKS[kind][level]
            s = stack.instance_numbers.index(mark["instance_number"])
            out[side, level] = stack.to_patient(s, mark["y_px"], mark["x_px"])
    return out


def changed(study, change):
    """The study with every sagittal stack changed; axial series as they are."""
    series = {
        name: [change(stack) for stack in stacks] if name in (SAGITTAL_T1, SAGITTAL_T2) else list(stacks)
        for name, stacks in study.series.items()
    }
    return Study(study.study_id, series, list(study.problems))


def middle_px(stack):
    rows, columns = stack.volume.shape[1:]
    return (columns - 1) / 2, (rows - 1) / 2


def turned(study, degrees):
    """The patient turned in the plane of the image; the headers do not say so."""

    def change(stack):
        matrix = cv2.getRotationMatrix2D(middle_px(stack), degrees, 1.0)
        size = stack.volume.shape[2], stack.volume.shape[1]
        return replace(stack, volume=np.stack([cv2.warpAffine(image, matrix, size) for image in stack.volume]))

    def move(stack, xyz):
        s, row, column = stack.to_voxel(xyz)
        x, y = cv2.getRotationMatrix2D(middle_px(stack), degrees, 1.0) @ (column, row, 1.0)
        return stack.to_patient(s, y, x)

    stack = sagittal(study)[0]
    return changed(study, change), {key: move(stack, xyz) for key, xyz in marks_mm(study).items()}


def zoomed(study, factor):
    """A patient of another size: the same pixels, each ``factor`` as large."""

    def change(stack):
        x, y = middle_px(stack)
        away = (1 - factor) * (x * stack.column_mm + y * stack.row_mm)
        return replace(
            stack,
            row_mm=stack.row_mm * factor,
            column_mm=stack.column_mm * factor,
            origins_mm=stack.origins_mm + away,
        )

    new = changed(study, change)
    return new, marks_mm(new)


def magnified(study, factor):
    """The same patient in a picture of ``factor`` times the scale, as a smaller or larger field of view shows him."""

    def change(stack):
        x, y = middle_px(stack)
        matrix = cv2.getRotationMatrix2D((x, y), 0.0, factor)
        size = stack.volume.shape[2], stack.volume.shape[1]
        return replace(
            stack,
            volume=np.stack([cv2.warpAffine(image, matrix, size) for image in stack.volume]),
            row_mm=stack.row_mm / factor,
            column_mm=stack.column_mm / factor,
            origins_mm=stack.origins_mm + (1 - 1 / factor) * (x * stack.column_mm + y * stack.row_mm),
        )

    return changed(study, change), marks_mm(study)


def shortened(study, first, last):
    """The study without its first and last slices."""

    def change(stack):
        keep = slice(first, len(stack.volume) - last)
        return replace(
            stack,
            volume=stack.volume[keep],
            origins_mm=stack.origins_mm[keep],
            instance_numbers=stack.instance_numbers[keep],
        )

    return changed(study, change), marks_mm(study)


def cropped(study, below_mm):
    """The study with its images ending so far below the middle of L5/S1."""
    marks = marks_mm(study)

    def change(stack):
        _, row, _ = stack.to_voxel(marks[None, LEVELS[-1]])
        return replace(stack, volume=stack.volume[:, : int(row + below_mm / stack.spacing_mm[0])])

    return changed(study, change), marks


def errors_mm(localisation, marks, side):
    """(series, level) → distance in the sagittal plane from the mark, mm."""
    return {
        (point.series_id, point.level): float(np.linalg.norm((np.array(point.xyz_mm) - marks[side, point.level])[1:]))
        for point in localisation.sagittal_points
        if point.side == side
    }
