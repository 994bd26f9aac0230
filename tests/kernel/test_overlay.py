import cv2
import numpy as np
import pytest

from lumbar.chains.overlay import COLOURS, draw
from lumbar.dicom import Stack
from lumbar.errors import LumbarError
from lumbar.labels import AXIAL_T2, LEVELS, SAGITTAL_T1, SAGITTAL_T2
from lumbar.stages.points import AxialLevel, Localisation, SagittalPoint
from lumbar.study import Study


def stack(series_id, n_slices, rows, columns, row_mm, column_mm):
    volume = np.random.default_rng(0).uniform(50, 200, (n_slices, rows, columns)).astype(np.float32)
    return Stack(
        series_id=series_id,
        volume=volume,
        origins_mm=np.array([[4.0 * i, 0.0, 0.0] for i in range(n_slices)]),
        row_mm=np.array(row_mm, dtype=float),
        column_mm=np.array(column_mm, dtype=float),
        instance_numbers=list(range(1, n_slices + 1)),
        is_inverted=False,
        problems=[],
    )


def study():
    sagittal = stack("5", 7, 100, 60, [0, 0, -2.0], [0, 1.0, 0])
    axial = stack("6", 5, 90, 120, [0, 1.0, 0], [1.0, 0, 0])
    return Study(1, {SAGITTAL_T1: [], SAGITTAL_T2: [sagittal], AXIAL_T2: [axial]})


def point(level, x, y, slice_index=3):
    return SagittalPoint("5", level, None, slice_index + 1, x, y, (0.0, 0.0, 0.0), 0.9, 0, slice_index, SAGITTAL_T2)


def axial_level(level, slice_index=2):
    return AxialLevel("6", level, slice_index + 1, 0.4, (70.0, 45.0), (50.0, 45.0), 0.9, 0, slice_index)


def decoded(picture):
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(picture.png, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def has_colour(image, colour, x, y, reach=2):
    near = image[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1].reshape(-1, 3).astype(int)
    return (np.abs(near - np.array(colour)).max(axis=1) <= 6).any()


def test_levels_are_drawn_where_they_are_in_square_millimetres():
    localisation = Localisation([point(level, 20.0, 10.0 + 18 * k) for k, level in enumerate(LEVELS)])
    pictures = draw(study(), localisation)
    assert pictures[0].title == "Sagittal T2, series 5, slice 4"
    image = decoded(pictures[0])
    assert image.shape[0] == 400  # 200 mm by 60 mm, and room for the labels
    assert image[:, 120:].min() == 0
    assert image[:, 119].min() > 0
    for k, level in enumerate(LEVELS):
        assert has_colour(image, COLOURS[level], round(20.5 * 2 - 0.5), round((10.5 + 18 * k) * 4 - 0.5)), level


def test_axial_slices_carry_left_and_right():
    localisation = Localisation([], [axial_level("l3_l4"), axial_level("l5_s1", 4)])
    pictures = draw(study(), localisation)
    assert pictures[0].title.endswith("no level found")
    assert [p.title for p in pictures[1:]] == [
        "L3/L4: series 6, slice 3, 0.4 mm away",
        "L5/S1: series 6, slice 5, 0.4 mm away",
    ]
    image = decoded(pictures[1])
    side = image.shape[0]
    scale = side / 90.0
    for x_px in (70.0, 50.0):
        assert has_colour(image, COLOURS["l3_l4"], round(side / 2 + (x_px - 60.0) * scale), side // 2)


def test_nothing_is_drawn_where_nothing_is():
    empty = Study(1, {SAGITTAL_T1: [], SAGITTAL_T2: [], AXIAL_T2: []})
    assert draw(empty, Localisation()) == []


def test_pictures_are_small():
    localisation = Localisation([point(level, 20.0, 18.0 * k) for k, level in enumerate(LEVELS)])
    assert all(len(picture.png) < 120_000 for picture in draw(study(), localisation))


def test_a_slice_that_does_not_exist_is_refused():
    with pytest.raises(LumbarError, match=r"series 6: slice 9, expected 0\.\.4"):
        draw(study(), Localisation([], [axial_level("l1_l2", 9)]))
