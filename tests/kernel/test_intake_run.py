"""A run over any folder of DICOM: the same answers as from the competition's layout, whatever names and ids are."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from hospital_tree import SCOUT, T1, T2, data_set, scramble, write, write_series
from kernel_dicom import write_dicom_cohort
from kernel_untrained import write_untrained_bundle
from lumbar import __main__ as command
from lumbar.competitions.lumbar_spine import COMPETITION
from lumbar.errors import CohortError
from lumbar.intake.index import index_folder
from lumbar.intake.run_table import kind_shown
from lumbar.labels import COLUMNS, DESCRIPTIONS, SEVERITY_COLUMNS
from lumbar.run import predict
from real_study import REAL


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_untrained_bundle(tmp_path_factory.mktemp("untrained") / "bundle")


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """Two studies in the competition's layout, and the same as a hospital's tree with text ids and other series."""
    folder = tmp_path_factory.mktemp("layouts")
    root = write_dicom_cohort(folder / "competition", [4, 9])
    rows = pd.read_csv(root / "test_series_descriptions.csv").itertuples(index=False)
    ids = scramble(root, folder / "tree", descriptions=[tuple(row) for row in rows])
    for study in ids.values():
        extra = {"PatientID": None}
        write_series(
            folder / "tree" / "more" / f"knee{study[5]}",
            study,
            f"{study} knee",
            3,
            BodyPartExamined="KNEE",
            **extra,
            **T2,
        )
        late = {"ContrastBolusAgent": "Gadobutrol"} | extra
        write_series(folder / "tree" / f"late{len(study)}" / study[5], study, f"{study} late", 3, **late, **T1)
        write(
            folder / "tree" / f"scout {study[5]}", data_set(study, f"{study} scout", 1, spacing=8.0, **extra, **SCOUT)
        )
    (folder / "tree" / "DICOMDIR").write_bytes(b"")
    return root, folder / "tree", ids


def test_the_answers_are_those_of_the_competitions_layout(layouts, bundle, tmp_path):
    root, tree, ids = layouts
    expected, _ = predict(root, bundle, processes=False)
    out, path = tmp_path / "s.csv", tmp_path / "r.json"
    frame, record = predict(tree, bundle, out, record=path, processes=False)
    assert sorted(study["study_id"] for study in record["studies"]) == ["CASE~204~2fA", "CASE~209~2fA"]
    values = frame.set_index("row_id")[list(SEVERITY_COLUMNS)]
    for study_id in ids:
        for column in COLUMNS:
            own = values.loc[f"CASE~20{study_id}~2fA_{column}"].to_numpy(float)
            before = expected.set_index("row_id").loc[f"{study_id}_{column}", list(SEVERITY_COLUMNS)].to_numpy(float)
            assert np.abs(own - before).max() < 1e-6
    assert len(pd.read_csv(out)) == 50
    stored = json.loads(path.read_text())
    assert stored["index"]["dicom"] == stored["index"]["files"] > 100
    for study in stored["studies"]:
        assert study["status"] == "predicted"
        kinds = [entry["kind"] for entry in study["inputs"]]
        assert sorted(kinds) == sorted([*DESCRIPTIONS, "left out", "left out", "left out"])
        assert all(entry["reason"] and entry["slices"] for entry in study["inputs"])
        used = {entry["series_id"] for entry in study["inputs"] if entry["kind"] != "left out"}
        assert {point["series_id"] for point in study["sagittal_points"]} <= used


def test_a_competitions_record_says_what_its_table_says(layouts, bundle):
    root, _, _ = layouts
    _, record = predict(root, bundle, processes=False, studies=[9])
    assert [entry["kind"] for entry in record["studies"][0]["inputs"]] == list(DESCRIPTIONS)
    assert {entry["reason"] for entry in record["studies"][0]["inputs"]} == {"table of series"}
    assert "index" not in record


def test_images_without_their_table_keep_the_samples_order_and_ids(layouts, bundle, tmp_path):
    _, tree, ids = layouts
    root = tmp_path / "data"
    for study_id, text in ids.items():
        for study in index_folder(tree).studies:
            for decision in study.decisions:
                if decision.part.study == text and decision.kind:
                    for path in decision.part.files:
                        target = root / "test_images" / str(study_id) / decision.part.series
                        target.mkdir(parents=True, exist_ok=True)
                        shutil.copy(path, target)
    (root / "sample_submission.csv").write_text("row_id,normal_mild,moderate,severe\n" + "".join(
        f"{study_id}_{column},0.3,0.3,0.4\n" for study_id in (9, 4, 77) for column in COLUMNS))  # fmt: skip
    frame, record = predict(root, bundle, processes=False)
    assert [study["study_id"] for study in record["studies"]] == [9, 4, 77]
    assert [study["status"] for study in record["studies"]] == ["predicted", "predicted", "prior"]
    assert len(frame) == 75


def test_worker_processes_take_text_ids(tmp_path, bundle, layouts):
    _, tree, _ = layouts
    _, record = predict(tree, bundle, studies=["CASE~209~2fA"], workers=1)
    assert [study["status"] for study in record["studies"]] == ["predicted"]


def test_a_folder_that_is_refused_leaves_nothing_behind(tmp_path, bundle, capsys):
    write_series(tmp_path / "in" / "Jane", "1.2", "1.3", Modality="CT", SOPClassUID="1.2.840.10008.5.1.4.1.1.2")
    arguments = ["predict", "--data", tmp_path / "in", "--weights", bundle, "--out", tmp_path / "s.csv"]
    assert command.main([str(argument) for argument in arguments]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"error: {tmp_path / 'in'}: study 1.2: found modality CT, expected MR"
    ]
    assert not (tmp_path / "s.csv").exists()


def test_an_output_never_replaces_a_file_that_is_read(tmp_path, bundle, capsys):
    write_series(tmp_path / "in", "1.2", "1.3", **T2)
    before = (tmp_path / "in" / "IM00001").read_bytes()
    arguments = ["predict", "--data", tmp_path / "in", "--weights", bundle, "--out", tmp_path / "in" / "IM00001"]
    assert command.main([str(argument) for argument in arguments]) == 1
    assert "expected a file's name" in capsys.readouterr().err
    (tmp_path / "link.csv").symlink_to(tmp_path / "in" / "IM00001")
    for out in (tmp_path / "in" / "IM00001", tmp_path / "link.csv"):
        with pytest.raises(CohortError, match=r"found a place among the inputs for out, expected one outside \S*in"):
            predict(tmp_path / "in", bundle, out=out)
    assert (tmp_path / "in" / "IM00001").read_bytes() == before


def test_no_output_is_written_into_any_folder_of_dicom(tmp_path, bundle):
    root = tmp_path / "Müller Daten"
    write_series(root / "a", "1.2", "1.3", **T2)
    before = sorted(root.rglob("*"))
    results = root / "Ergebnis 1"
    for name, path in {
        "out": results / "submission.csv", "report": results / "r.html", "record": root / "r.json",
        "table": root / "a" / "t.csv", "pictures": results, "markups": root / "a" / "m",
    }.items():  # fmt: skip
        outputs = {"out": tmp_path / "new" / "s.csv", name: path}
        with pytest.raises(CohortError, match=f"found a place among the inputs for {name}, expected one outside"):
            predict(root, bundle, **outputs)
    assert sorted(root.rglob("*")) == before
    assert not (tmp_path / "new").exists(), "refusals come before any folder is made"


def test_a_folder_inside_a_competitions_folder_keeps_its_table(layouts, tmp_path):
    root, _, _ = layouts
    for folder in (root / "test_images", root / "test_images" / "4"):
        for study in index_folder(folder).studies:
            assert sorted(kind_shown(one.kind) for one in study.decisions) == sorted(DESCRIPTIONS)
            assert {one.reason for one in study.decisions} == {"table of series of the competition's folder"}


def test_rows_of_ids_with_underlines_are_told_apart():
    row = COMPETITION.row_ids("case_7_b")[3]
    assert COMPETITION.split_row_id(row) == ("case_7_b", COLUMNS[3])
    assert COMPETITION.split_row_id("5_nonsense") == ("5", "nonsense")


@pytest.mark.real
def test_the_real_study_is_told_without_its_table(tmp_path):
    shutil.copytree(REAL / "test_images", tmp_path / "images" / "scan")
    (study,) = index_folder(tmp_path / "images").studies
    named = dict(zip(map(str, study.series_ids), [one.kind for one in study.decisions], strict=True))
    table = pd.read_csv(REAL / "test_series_descriptions.csv", dtype=str)
    assert named == dict(zip(table["series_id"], table["series_description"], strict=True))
    assert study.study_id == 20180105
