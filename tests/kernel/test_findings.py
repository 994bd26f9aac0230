"""The table of findings and the markups: the right point beside each answer, in columns that say what they hold."""

import csv
import json

import numpy as np
import pytest
from jsonschema import Draft7Validator

from kernel_bundles import write_bundle
from lumbar.bundle.manifest import read_manifest
from lumbar.labels import COLUMNS, LEVELS, SAGITTAL_T1, SAGITTAL_T2, SEVERITIES
from lumbar.output.findings import findings_of, warnings_of
from lumbar.output.findings_table import COLUMNS as TABLE_COLUMNS
from lumbar.output.findings_table import normalised_prior, write_table
from lumbar.output.markups import markups, write_markups
from report_studies import all_points, axial_level, outcome, probabilities, sagittal_point, standing

PRIOR = np.tile([0.6, 0.3, 0.1], (25, 1))
XYZ = {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3}
# What Slicer's markups-schema-v1.0.3.json asks of the fields that are written, in our own words
SLICER = {
    "type": "object",
    "required": ["@schema", "markups"],
    "properties": {
        "@schema": {"type": "string", "pattern": r"markups-schema-v1\.0\.[0-9]+\.json#$"},
        "markups": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type"],
                "additionalProperties": False,
                "properties": {
                    "type": {"enum": ["Fiducial", "Line", "Angle", "Curve", "ClosedCurve", "Plane", "ROI"]},
                    "name": {"type": "string"},
                    "coordinateSystem": {"enum": ["LPS", "RAS"]},
                    "coordinateUnits": {"enum": ["mm", "um"]},
                    "locked": {"type": "boolean"},
                    "labelFormat": {"type": "string"},
                    "controlPoints": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {
                                "id": {"type": "string"},
                                "label": {"type": "string"},
                                "description": {"type": "string"},
                                "position": XYZ,
                                "orientation": {**XYZ, "minItems": 9, "maxItems": 9},
                                "selected": {"type": "boolean"},
                                "locked": {"type": "boolean"},
                                "visibility": {"type": "boolean"},
                                "positionStatus": {"enum": ["undefined", "preview", "defined"]},
                            },
                        },
                    },
                    "display": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "visibility": {"type": "boolean"},
                            "pointLabelsVisibility": {"type": "boolean"},
                            "glyphType": {"enum": ["Sphere3D"]},
                            "glyphScale": {"type": "number", "minimum": 0},
                        },
                    },
                },
            },
        },
    },
}


@pytest.fixture
def manifest(tmp_path):
    return read_manifest(write_bundle(tmp_path / "bundle"))


def rows_of(tmp_path, manifest, *outcomes):
    submission = standing(normalised_prior(manifest))
    submission.answers.update({one.study_id: one.probs for one in outcomes if one.probs is not None})
    write_table(tmp_path / "findings.csv", outcomes, submission, manifest)
    with open(tmp_path / "findings.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_study_has_a_row_for_each_condition_level_and_side_in_the_order_of_the_submission(tmp_path, manifest):
    rows = rows_of(tmp_path, manifest, outcome(7, **all_points()), outcome(8, **all_points()))
    assert tuple(rows[0]) == TABLE_COLUMNS
    assert [row["row_id"] for row in rows] == [f"{study}_{column}" for study in (7, 8) for column in COLUMNS]
    keys = {(row["study_id"], row["condition"], row["level"], row["side"]) for row in rows}
    assert len(keys) == 50
    assert {row["side"] for row in rows if row["condition"] == "spinal_canal_stenosis"} == {""}
    assert {row["side"] for row in rows if row["condition"] != "spinal_canal_stenosis"} == {"left", "right"}
    assert {row["status"] for row in rows} == {"predicted"}


def test_the_grade_weighs_each_probability_as_the_competition_does(tmp_path, manifest):
    probs = np.tile([0.7, 0.2, 0.1], (25, 1))
    probs[0], probs[1], probs[2] = [0.5, 0.3, 0.2], [0.41, 0.42, 0.17], [0.1, 0.2, 0.7]
    rows = rows_of(tmp_path, manifest, outcome(7, probs=probs))
    assert [row["grade"] for row in rows[:4]] == ["Severe", "Moderate", "Severe", "Normal/Mild"]
    assert [row["likeliest_grade"] for row in rows[:4]] == ["Normal/Mild", "Moderate", "Severe", "Normal/Mild"]
    for row in rows:
        values = [float(row[name]) * weight for name, weight in (("normal_mild", 1), ("moderate", 2), ("severe", 4))]
        assert row["grade"] == SEVERITIES[int(np.argmax(values))]


def test_each_row_has_the_point_that_its_condition_is_read_from(tmp_path, manifest):
    points = all_points()
    points["sagittal_points"] += [
        sagittal_point("l4_l5", None, SAGITTAL_T1, "7", 0.99),  # canal points on T1 grade nothing
        sagittal_point("l4_l5", None, SAGITTAL_T2, "9", 0.8, x_px=1.0),
        sagittal_point("l4_l5", "left", SAGITTAL_T2, "5", 0.99),
    ]
    points["axial_levels"].append(axial_level("l4_l5", -0.1, "11", frame=3))
    rows = {row["row_id"][2:]: row for row in rows_of(tmp_path, manifest, outcome(7, **points))}
    canal = rows["spinal_canal_stenosis_l4_l5"]
    assert (canal["series_id"], canal["x_px"], canal["confidence"]) == ("9", "1.000", "0.8000")
    assert rows["left_neural_foraminal_narrowing_l4_l5"]["series_id"] == "7"
    left, right = (rows[f"{side}_subarticular_stenosis_l4_l5"] for side in ("left", "right"))
    assert (left["series_id"], left["instance_number"], left["frame"]) == ("11", "20", "3")
    assert [left[name] for name in ("x_px", "y_px", "x_mm", "y_mm", "z_mm")] == [
        "180.000", "200.000", "10.000", "5.000", "7.000",
    ]  # fmt: skip
    assert (right["x_px"], right["x_mm"]) == ("120.000", "-9.000")


def test_the_probability_of_a_point_has_a_column_of_its_own(tmp_path, manifest):
    points = all_points()
    points["sagittal_points"].append(sagittal_point("l4_l5", None, SAGITTAL_T2, "9", 0.99) | {"probability": 0.95})
    rows = {row["row_id"][2:]: row for row in rows_of(tmp_path, manifest, outcome(7, **points))}
    told, untold = (rows[f"spinal_canal_stenosis_{level}"] for level in ("l4_l5", "l3_l4"))
    assert (told["confidence"], told["point_probability"]) == ("0.9900", "0.9500")
    assert untold["point_probability"] == ""


def test_an_answer_that_rests_on_no_image_says_so(tmp_path, manifest):
    probs = probabilities(3)
    probs[5] = [0.6, 0.3, 0.1]  # a column that no network saw
    failed = outcome(8, probs=None, problems=["study 8: found no readable series, expected at least one"])
    rows = rows_of(tmp_path, manifest, outcome(7, probs=probs, **all_points()), failed)
    assert [row["status"] for row in rows[:25]].count("prior") == 1
    assert "not graded from images" in rows[5]["warnings"]
    assert {row["status"] for row in rows[25:]} == {"prior"}
    assert all("no point found" in row["warnings"] and row["x_px"] == row["series_id"] == "" for row in rows[25:])
    assert all("found no readable series" in row["warnings"] for row in rows[25:])


def test_levels_that_no_axial_slice_reaches_are_told_beside_their_rows(tmp_path, manifest):
    points = all_points()
    points["axial_levels"] = points["axial_levels"][2:]
    rows = {row["row_id"][2:]: row["warnings"] for row in rows_of(tmp_path, manifest, outcome(7, **points))}
    line = "axial slices do not reach L1/L2, L2/L3"
    assert rows["left_subarticular_stenosis_l1_l2"] == f"no point found; {line}"
    assert rows["left_subarticular_stenosis_l3_l4"] == ""


def test_warnings_stand_beside_the_levels_that_they_name():
    problems = ["levels not found: l1_l2, l2_l3", "L5/S1 lies 3 mm above the images' edge", "no Axial T2 series"]
    findings = findings_of(outcome(7, axial_levels=[axial_level("l3_l4", -5.2)]), probabilities(1), PRIOR)
    by_level = {finding.level: warnings_of(finding, problems) for finding in findings[:5]}
    assert by_level["l1_l2"] == ["no point found", problems[0], problems[2]]
    assert by_level["l5_s1"] == ["no point found", *problems[1:]]
    assert "nearest axial slice 5.2 mm from the level" in warnings_of(findings[17], [])


def test_text_from_outside_is_no_formula_and_breaks_no_row(tmp_path, manifest):
    one = outcome(7, problems=['=HYPERLINK("http://x")', "a,b\nc"], **all_points())
    rows = rows_of(tmp_path, manifest, one, outcome("=1+1, x"))
    assert len(rows) == 50
    assert rows[0]["warnings"].startswith("'=")
    assert rows[25]["study_id"] == "'=1+1, x"


def test_many_problems_do_not_make_a_row_endless(tmp_path, manifest):
    rows = rows_of(tmp_path, manifest, outcome(7, problems=[f"{k}.dcm: {'x' * 2000}" for k in range(500)]))
    assert all(len(row["warnings"]) < 4500 for row in rows)
    assert rows[0]["warnings"].endswith("489 more")


# ---- markups ------------------------------------------------------------------------------------------------------


def test_markups_have_the_form_of_slicers_schema(tmp_path):
    for number, points in enumerate((all_points(), {}), 1):
        write_markups(tmp_path, number, findings_of(outcome(number, **points), probabilities(1), PRIOR))
        content = json.loads((tmp_path / f"{number}.mrk.json").read_text())
        assert [error.message for error in Draft7Validator(SLICER).iter_errors(content)] == []
        assert len(content["markups"]) == 1
        assert len(content["markups"][0]["controlPoints"]) == (25 if points else 0)


def test_markups_name_level_and_side_and_lie_where_the_points_do():
    content = markups(7, findings_of(outcome(7, **all_points()), probabilities(1), PRIOR))["markups"][0]
    assert (content["coordinateSystem"], content["coordinateUnits"]) == ("LPS", "mm")
    places = {point["label"]: point["position"] for point in content["controlPoints"]}
    assert len(places) == 25
    assert places["L1/L2 canal"] == [1.5, -2.25, 30.0]
    assert places["L5/S1 left subarticular"] == [10.0, 5.0, 7.0]
    assert places["L5/S1 right subarticular"] == [-9.0, 5.5, 7.0]
    assert {"L3/L4 left foramen", "L3/L4 right foramen"} <= places.keys()
    assert content["controlPoints"][0]["description"] == "series 5, slice 8, confidence 0.50"


def test_a_point_without_a_place_in_millimetres_is_no_markup():
    points = [sagittal_point(level, xyz_mm=[float("nan"), 0.0, 0.0]) for level in LEVELS]
    axial = [{k: v for k, v in axial_level("l1_l2").items() if not k.endswith("_mm") or k == "distance_mm"}]
    one = outcome(7, sagittal_points=points, axial_levels=axial)
    assert markups(7, findings_of(one, probabilities(1), PRIOR))["markups"][0]["controlPoints"] == []
