import cv2
import numpy as np
import pytest

from lumbar.chains.contract import LEVEL_COLOURS as COLOURS
from lumbar.chains.main import axial_points_mm
from lumbar.chains.overlay import draw, views
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
    t1 = stack("7", 9, 90, 70, [0, 0, -2.0], [0, 1.5, 0])
    axial = stack("6", 5, 90, 120, [0, 1.0, 0], [1.0, 0, 0])
    return Study(1, {SAGITTAL_T1: [t1], SAGITTAL_T2: [sagittal], AXIAL_T2: [axial]})


def point(level, x, y, slice_index=3, side=None):
    series, description = ("5", SAGITTAL_T2) if side is None else ("7", SAGITTAL_T1)
    return SagittalPoint(series, level, side, slice_index + 1, x, y, (0.0, 0.0, 0.0), 0.9, 0, slice_index, description)


def axial_level(level, slice_index=2):
    return AxialLevel("6", level, slice_index + 1, 0.4, (70.0, 45.0), (50.0, 45.0), 0.9, 0, slice_index)


def whole():
    """Points of every kind; those of the left foramina lie on two slices."""
    canal = [point(level, 30.0, 10.0 + 18 * k) for k, level in enumerate(LEVELS)]
    left = [point(level, 30.0, 10.0 + 14 * k, 5 if k < 3 else 6, "left") for k, level in enumerate(LEVELS)]
    right = [point(level, 30.0, 10.0 + 14 * k, 1, "right") for k, level in enumerate(LEVELS)]
    return Localisation([*canal, *left, *right], [axial_level(level) for level in LEVELS])


def decoded(picture):
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(picture.png, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def has_colour(image, colour, x, y, reach=2):
    near = image[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1].reshape(-1, 3).astype(int)
    return (np.abs(near - np.array(colour)).max(axis=1) <= 6).any()


def test_every_kind_of_grade_has_a_picture_with_its_points():
    pictures = [picture for picture in views(study(), whole()) if picture.view.is_main]
    assert [picture.view.kind for picture in pictures] == ["canal", "left foramen", "right foramen"] + ["axial"] * 5
    for picture in pictures[:3]:
        assert [mark.level for mark in picture.view.marks] == list(LEVELS)
    for picture in pictures[3:]:
        assert {(mark.level, mark.side) for mark in picture.view.marks} == {
            (picture.view.level, "left"),
            (picture.view.level, "right"),
        }


def test_a_point_of_another_slice_is_marked_as_such_and_gets_a_picture_of_its_own():
    left = [picture.view for picture in views(study(), whole()) if picture.view.kind == "left foramen"]
    assert [(view.is_main, view.instance_number) for view in left] == [(True, 6), (False, 7)]
    assert [mark.other_slice for mark in left[0].marks] == [None, None, None, 7, 7]
    assert [(mark.level, mark.other_slice) for mark in left[1].marks] == [("l4_l5", None), ("l5_s1", None)]


def test_a_point_lies_where_it_is_in_square_millimetres():
    for picture in views(study(), whole()):
        view = picture.view
        image = cv2.imdecode(np.frombuffer(picture.png, np.uint8), cv2.IMREAD_GRAYSCALE)
        assert image.shape == view.size_px[::-1]
        down_mm, across_mm = {"5": (2.0, 1.0), "7": (2.0, 1.5), "6": (1.0, 1.0)}[view.series_id]
        assert view.scale[0] * view.mm_px == pytest.approx(across_mm, rel=0.02)
        assert view.scale[1] * view.mm_px == pytest.approx(down_mm, rel=0.02)
    canal = views(study(), whole())[0].view
    assert [mark.y for mark in canal.marks] == [
        pytest.approx((10.5 + 18 * k - canal.origin_px[1]) * canal.scale[1]) for k in range(5)
    ]


def test_the_edges_say_which_side_of_the_patient_lies_beyond():
    edges = {picture.view.kind: picture.view.edges for picture in views(study(), whole())}
    assert edges["canal"] == ("A", "P")
    assert edges["axial"] == ("R", "L")
    turned = study()
    turned.series[AXIAL_T2][0].column_mm *= -1
    assert views(turned, whole())[-1].view.edges == ("L", "R")


def test_drawn_pictures_carry_the_points():
    pictures = draw(study(), whole())
    assert [picture.view for picture in pictures] == [None] * 8
    assert pictures[0].title == "Sagittal T2, series 5, slice 4"
    assert pictures[1].title == "Sagittal T1 left, series 7, slice 6"
    drawn = [picture for picture in views(study(), whole()) if picture.view.is_main]
    for picture, bare in zip(pictures, drawn, strict=True):
        image = decoded(picture)
        for mark in bare.view.marks:
            assert has_colour(image, COLOURS[mark.level], round(mark.x - 0.5), round(mark.y - 0.5)), picture.title


def test_a_picture_file_says_what_it_shows_and_which_side_lies_where():
    pictures = draw(study(), whole())
    axial = [f"axial_{level}" for level in LEVELS]
    assert [picture.name for picture in pictures] == ["sagittal_t2", "sagittal_t1_left", "sagittal_t1_right", *axial]
    turned = study()
    turned.series[AXIAL_T2][0].column_mm *= -1
    image, mirrored = decoded(pictures[3]), decoded(draw(turned, whole())[3])
    height = image.shape[0]
    edge = image[height // 2 - 14 : height // 2 + 6, :20]
    assert (edge.astype(int).min(axis=2) > 150).any()  # a bright letter on its dark patch
    assert not np.array_equal(edge, mirrored[height // 2 - 14 : height // 2 + 6, :20])


def test_a_label_that_would_be_cut_at_the_right_edge_stands_to_the_left_of_its_cross():
    edge = Localisation([point("l1_l2", 56.0, 40.0)])
    mark = views(study(), edge)[0].view.marks[0]
    widths = []
    for size in (1.0, 1.5):
        image = decoded(draw(study(), edge, size)[0]).astype(int)
        coloured = (image.max(axis=2) - image.min(axis=2) > 60).any(axis=0)
        to_left = np.flatnonzero(coloured[: round(mark.x) - 10])
        widths.append(to_left[-1] - to_left[0])
        assert to_left[0] > 0
    assert 25 < widths[0] < widths[1]


def test_points_of_an_axial_slice_in_patient_space_lie_in_its_plane():
    level = axial_level("l3_l4", 2)
    places = axial_points_mm(study(), level)
    assert places == {"left_mm": [78.0, 45.0, 0.0], "right_mm": [58.0, 45.0, 0.0]}


def test_the_distance_of_an_axial_slice_says_from_what():
    titles = [
        picture.title for picture in draw(study(), Localisation([], [axial_level("l3_l4"), axial_level("l5_s1", 4)]))
    ]
    assert titles[0].endswith("slice 4")
    assert "no level found" in titles[0]
    assert titles[1:] == [
        "L3/L4: axial T2, series 6, slice 3, 0.4 mm from the canal point of the level",
        "L5/S1: axial T2, series 6, slice 5, 0.4 mm from the canal point of the level",
    ]


def test_a_confidence_is_not_drawn():
    low, high = whole(), whole()
    high.sagittal_points = [p.__class__(**{**p.__dict__, "confidence": 0.1}) for p in high.sagittal_points]
    assert [picture.png for picture in draw(study(), low)] == [picture.png for picture in draw(study(), high)]


def test_of_two_series_the_overview_shows_every_level_of_the_one_with_most():
    both = study()
    both.series[SAGITTAL_T2].append(stack("8", 7, 100, 60, [0, 0, -2.0], [0, 1.0, 0]))
    points = [point(level, 30.0, 10.0 + 18 * k) for k, level in enumerate(LEVELS)]
    points.append(SagittalPoint("8", "l5_s1", None, 3, 30.0, 80.0, (0.0, 0.0, 0.0), 0.99, 1, 2, SAGITTAL_T2))
    main, other = views(both, Localisation(points))
    assert [mark.level for mark in main.view.marks] == list(LEVELS)
    assert (other.view.series_id, [mark.level for mark in other.view.marks]) == ("8", ["l5_s1"])


def test_nothing_is_drawn_where_nothing_is():
    empty = Study(1, {SAGITTAL_T1: [], SAGITTAL_T2: [], AXIAL_T2: []})
    assert draw(empty, Localisation()) == []
    assert views(empty, Localisation()) == []


def test_pictures_of_a_study_are_small():
    assert sum(len(picture.png) for picture in views(study(), whole())) < 400_000


def test_a_slice_that_does_not_exist_is_refused():
    with pytest.raises(LumbarError, match=r"series 6: slice 9, expected 0\.\.4"):
        draw(study(), Localisation([], [axial_level("l1_l2", 9)]))
