"""What a study says of series whose geometry is guessed, and that ``inspect`` takes them for what ``predict`` does."""

from dataclasses import replace

import numpy as np
import pytest

from kernel_dicom import write_dicom_cohort
from lumbar.dicom.inspect import describe
from lumbar.labels import AXIAL_T2, LEVELS, SAGITTAL_T1, SAGITTAL_T2
from lumbar.stages.localise import GUESSED_GEOMETRY_FACTOR, lower_guessed_confidence
from lumbar.stages.points import AxialLevel, Localisation, SagittalPoint
from lumbar.study import read_descriptions, read_study
from series_writer import AXIAL, SAGITTAL, echo, write
from stage_studies import localisation_of, study_of


def cohort(root, descriptions):
    """A study 7 with a series 70, 71 ... for each description; returns the series' folders."""
    lines = ["study_id,series_id,series_description"]
    folders = []
    for index, description in enumerate(descriptions):
        lines.append(f"7,{70 + index},{description}")
        folders.append(root / "test_images" / "7" / str(70 + index))
    root.mkdir(exist_ok=True)
    (root / "test_series_descriptions.csv").write_text("\n".join(lines) + "\n")
    return folders


def read(root):
    return read_study(root, "test", 7, read_descriptions(root, "test"))


def test_a_study_says_once_that_geometry_is_guessed(tmp_path):
    bare, located = cohort(tmp_path, [SAGITTAL_T2, AXIAL_T2])
    for number in range(1, 7):
        write(bare, number, spacing=None)
        write(located, number, position=(0, 0, 4 * number), orientation=AXIAL)
    study = read(tmp_path)
    lines = [line for line in study.problems if "series 70" in line]
    assert len(lines) == 1
    for part in ("geometry guessed", "ImageOrientationPatient", "PixelSpacing", "ImagePositionPatient"):
        assert part in lines[0]
    assert not any("71" in line for line in study.problems)
    assert [stack.is_geometry_guessed for stack in study.series[SAGITTAL_T2]] == [True]
    assert [stack.is_geometry_guessed for stack in study.series[AXIAL_T2]] == [False]


def test_a_stacks_problem_is_said_once(tmp_path):
    (folder,) = cohort(tmp_path, [AXIAL_T2])
    for number in range(1, 5):
        slope = [(0x00281053, "DS", b"0 ")] if number == 2 else []
        write(folder, number, position=(0, 0, 4 * number), orientation=AXIAL, extra=slope)
    lines = [line for line in read(tmp_path).problems if "not rescaled" in line]
    assert len(lines) == 1
    assert "70" in lines[0]


def test_t2_series_take_the_longest_echo_and_t1_series_the_shortest(tmp_path):
    folders = cohort(tmp_path, [SAGITTAL_T1, SAGITTAL_T2])
    for folder in folders:
        for index in range(5):
            write(folder, index + 1, position=(4 * index, 0, 0), orientation=SAGITTAL, extra=[echo(15)])
            write(folder, index + 11, position=(4 * index, 0, 0), orientation=SAGITTAL, extra=[echo(90)])
    study = read(tmp_path)
    assert study.series[SAGITTAL_T1][0].instance_numbers == [1, 2, 3, 4, 5]
    assert study.series[SAGITTAL_T2][0].instance_numbers == [11, 12, 13, 14, 15]
    assert "numbers" in describe(folders[0])


@pytest.mark.parametrize(("description", "orientation"), [(AXIAL_T2, "axial"), (SAGITTAL_T1, "sagittal")])
def test_inspect_takes_a_series_without_geometry_for_what_predict_does(tmp_path, description, orientation):
    (folder,) = cohort(tmp_path, [description])
    for number in range(1, 5):
        write(folder, number, spacing=None)
    (stack,) = read(tmp_path).series[description]
    assert stack.orientation == orientation
    for text in (describe(folder), describe(folder.parent)):
        assert f"{orientation}, 4 x 12 x 10" in text
        assert f"description  {description} (test_series_descriptions.csv)" in text
        assert f"taken as {orientation}" in text
        assert "geometry guessed" in text


@pytest.mark.parametrize(
    "table", [None, "study_id,series_id\n7,70\n", "study_id,series_id,series_description\n8,70,a\n"]
)
def test_inspect_says_what_a_series_is_taken_for_that_no_table_describes(tmp_path, table):
    (folder,) = cohort(tmp_path, ["Axial T2"])
    path = tmp_path / "test_series_descriptions.csv"
    path.unlink()
    if table is not None:
        path.write_text(table)
    write(folder, 1)
    text = describe(folder)
    assert "description  unknown (" in text
    assert "taken as sagittal" in text
    assert "sagittal, 1 x 12 x 10" in text


def test_inspect_says_which_stacks_predict_leaves_unused(tmp_path):
    (folder,) = cohort(tmp_path, [AXIAL_T2])
    for number in range(1, 4):
        write(folder, number, position=(0, 0, 4 * number), orientation=AXIAL)
    write(folder, 9, position=(0, 0, 0), orientation=SAGITTAL)
    text = describe(folder)
    assert text.count("predict leaves it unused, expected axial") == 1
    assert any("1 slices are sagittal, expected axial; unused" in line for line in read(tmp_path).problems)


def test_the_same_study_with_and_without_a_competition_folder(tmp_path):
    root = write_dicom_cohort(tmp_path / "cohort", [7])
    with_table = describe(root / "test_images" / "7")
    (root / "test_images" / "7").rename(tmp_path / "7")
    without = describe(tmp_path / "7")
    assert "unknown" not in with_table
    assert without.count("description  unknown") == 3
    stacks = [line for line in with_table.splitlines() if "  stack " in line]
    assert stacks == [line for line in without.splitlines() if "  stack " in line]


def test_confidence_falls_where_geometry_is_guessed_and_nothing_else_changes():
    study = study_of()
    plain = localisation_of(study)
    for description in (SAGITTAL_T2, AXIAL_T2):
        study.series[description][0].is_geometry_guessed = True
    lowered = localisation_of(study)
    lower_guessed_confidence(study, lowered)
    for before, after in zip(plain.sagittal_points, lowered.sagittal_points, strict=True):
        factor = GUESSED_GEOMETRY_FACTOR if before.description == SAGITTAL_T2 else 1.0
        assert after == replace(before, confidence=before.confidence * factor)
    assert plain.axial_levels
    for before, after in zip(plain.axial_levels, lowered.axial_levels, strict=True):
        assert after == replace(before, confidence=before.confidence * GUESSED_GEOMETRY_FACTOR)
    assert lowered.levels_mm == plain.levels_mm


def test_the_record_names_the_frame_of_a_multi_frame_file_only():
    point = SagittalPoint("1", LEVELS[0], None, 3, 1.0, 2.0, (0.0, 0.0, 0.0), 0.5)
    level = AxialLevel("1", LEVELS[0], 3, 0.0, (1.0, 1.0), (2.0, 2.0))
    assert "frame" not in point.record()
    assert "frame" not in level.record()
    for framed in (replace(point, frame=np.int64(4)).record(), replace(level, frame=4).record()):
        assert framed["frame"] == 4
        assert type(framed["frame"]) is int
        assert framed["instance_number"] == 3


def test_points_of_a_multi_frame_stack_carry_its_frames():
    from lumbar.stages.place import append_point

    study = study_of()
    stack = study.series[SAGITTAL_T2][0]
    stack.frame_numbers = list(range(21, 21 + len(stack.volume)))
    localisation = Localisation()
    append_point(localisation, stack, 0, SAGITTAL_T2, LEVELS[0], None, stack.to_patient(3, 40, 40), None, 0.8)
    assert localisation.sagittal_points[0].frame == 24
