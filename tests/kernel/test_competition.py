"""Another competition in the run: its form of answer, the failure policy, and what a wrong module is told."""

import json
import logging
import sys
import types
from dataclasses import replace

import pandas as pd
import pytest

import tiny_competition as tiny
from kernel_bundles import write_bundle
from lumbar.__main__ import main
from lumbar.bundle.manifest import read_manifest
from lumbar.chains.contract import Chain, StudyResult
from lumbar.chains.registry import chain_of
from lumbar.competitions.contract import Competition
from lumbar.competitions.lumbar_spine import COMPETITION as LUMBAR_SPINE
from lumbar.competitions.registry import competition_named, competition_names
from lumbar.competitions.scoring import evaluate
from lumbar.competitions.tables import read_study_table
from lumbar.errors import CohortError, ManifestError
from lumbar.io.tables import PROBLEMS
from lumbar.labels import COLUMNS, row_ids
from lumbar.run import predict

CHAIN = Chain(tiny.read, tiny.load, tiny.predict, tiny.draw)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setitem(sys.modules, "lumbar.competitions.tiny", tiny)


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "bundle", competition="tiny", prior=tiny.PRIOR)


def write_data(root, studies, columns=("study_id", *tiny.FINDINGS)):
    for study_id, traits in studies.items():
        folder = root / "hidden" / "dicom" / str(study_id)
        folder.mkdir(parents=True)
        for trait in traits:
            (folder / trait).write_text("")
    rows = [",".join(columns), *(",".join([str(study_id), *["0.5"] * (len(columns) - 1)]) for study_id in studies)]
    (root / "sample_submission.csv").write_text("\n".join(rows) + "\n")
    return root


def answers(path):
    return {int(row[0]): list(row[1:]) for row in pd.read_csv(path).itertuples(index=False)}


def status(record):
    return {study["study_id"]: study["status"] for study in record["studies"]}


def test_one_row_a_study_with_the_competitions_own_columns(tmp_path, bundle):
    root, out = write_data(tmp_path / "data", {30: (), 10: ("noted",)}), tmp_path / "s.csv"
    report = tmp_path / "r.html"
    frame, record = predict(root, bundle, out, report=report, processes=False)
    assert out.read_text() == ("study_id,Fracture,Effusion\n30,0.90000000,0.20000000\n10,0.90000000,0.20000000\n")
    assert list(frame.columns) == ["study_id", *tiny.FINDINGS]
    assert status(record) == {30: "predicted", 10: "predicted"}
    assert record["studies"][1]["problems"] == ["study 10: one slice left out"]
    page = report.read_text()
    assert "Two findings run report" in page
    assert "90 · <b>20</b>" in page
    assert "Fracture" in page
    assert "Lumbar" not in page


def test_several_rows_a_study_that_each_sum_to_one_without_sample_or_table(tmp_path, bundle, monkeypatch):
    sides = replace(
        tiny.COMPETITION, rows=("left", "right_upper"), values=("no", "yes"), id_column="row_id", sums_to_one=True,
        images="{split}", split_names=("hidden", "known"),
    )  # fmt: skip
    monkeypatch.setattr(tiny, "COMPETITION", sides)
    monkeypatch.setattr(tiny, "predict", lambda *_: StudyResult([[3.0, 1.0], [1.0, 1.0]]))
    write_bundle(bundle, competition="tiny", prior={"left": [0.5, 0.5], "right_upper": [0.9, 0.1]})
    for study_id in range(7, 13):
        (tmp_path / "data" / "hidden" / str(study_id)).mkdir(parents=True)
    report = tmp_path / "r.html"
    frame, record = predict(tmp_path / "data", bundle, report=report, processes=False)
    assert frame.to_csv(index=False).splitlines()[:3] == ["row_id,no,yes", "7_left,0.75,0.25", "7_right_upper,0.5,0.5"]
    assert set(status(record).values()) == {"predicted"}
    page = report.read_text()
    assert "75 · <b>25</b>" in page
    assert "2 graded findings each" in page


def test_a_study_that_fails_keeps_the_competitions_prior(tmp_path, bundle, caplog):
    traits = {1: (), 2: ("raise",), 3: ("wide",), 4: ("above",), 5: ()}
    root, out = write_data(tmp_path / "data", traits), tmp_path / "s.csv"
    with caplog.at_level(logging.WARNING, "lumbar"):
        _, record = predict(root, bundle, out, processes=False)
    assert status(record) == {k: "prior" if k in (2, 3, 4) else "predicted" for k in traits}
    assert answers(out) == {k: [0.3, 0.4] if k in (2, 3, 4) else tiny.ANSWER for k in traits}
    lines = [line for study in record["studies"] for line in study["problems"]]
    assert lines == [
        "study 2: RuntimeError: no such index",
        "study 3: probabilities: found shape (25, 3), expected (1, 2)",
        "study 4: probabilities: study Fracture is 2.0, expected 1 or less",
    ]


def test_a_worker_that_dies_costs_one_study_of_another_competition_too(tmp_path, bundle):
    root, out = write_data(tmp_path / "data", {1: (), 2: ("exit",), 3: ()}), tmp_path / "s.csv"
    _, record = predict(root, bundle, out, chain=CHAIN)
    assert answers(out) == {1: tiny.ANSWER, 2: [0.3, 0.4], 3: tiny.ANSWER}
    assert "its process ended with exit code 7" in record["studies"][1]["problems"][0]


def test_time_that_runs_out_leaves_prior_rows(tmp_path, bundle):
    root, out = write_data(tmp_path / "data", {k: () for k in range(1, 9)}), tmp_path / "s.csv"
    times = iter([0.0] * 6)
    _, record = predict(root, bundle, out, chain=CHAIN, processes=False, clock=lambda: next(times, 1e9))
    assert [k for k, value in status(record).items() if value == "prior"]
    assert all(answers(out)[k] == [0.3, 0.4] for k, value in status(record).items() if value == "prior")
    assert set(answers(out)) == set(range(1, 9))


def test_inputs_of_another_competition_are_never_overwritten(tmp_path, bundle):
    root = write_data(tmp_path / "data", {1: ()})
    for place in (root / "sample_submission.csv", root / "train.csv", root / "hidden" / "dicom" / "1" / "s.csv"):
        with pytest.raises(CohortError, match=r"among the inputs|found an input of this run"):
            predict(root, bundle, place, processes=False)


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (("study_id", "Fracture"), r"\['study_id', 'Fracture'\]"),
        (("study_id", "fracture", "effusion"), r"\['study_id', 'fracture', 'effusion'\]"),
        (("study_id", "Fracture", "Effusion", "Cyst"), "'Cyst'"),
        (("StudyInstanceUID", "Fracture", "Effusion"), "'studyinstanceuid'"),
    ],
)
def test_columns_that_the_sample_submission_does_not_have_are_refused_before_anything_is_written(
    tmp_path, bundle, columns, shown
):
    root, out = write_data(tmp_path / "data", {1: ()}, columns), tmp_path / "s.csv"
    with pytest.raises(CohortError, match=rf"sample_submission\.csv: found columns .*{shown}.*, expected study_id"):
        predict(root, bundle, out, processes=False)
    assert not out.exists()


def test_the_score_command_takes_the_competitions_metric(tmp_path, capsys):
    (tmp_path / "solution.csv").write_text("study_id,Fracture,Effusion\n1,1,0\n2,0,0\n")
    (tmp_path / "s.csv").write_text("study_id,Fracture,Effusion\n2,0.2,0.1\n1,0.9,0.2\n")
    command = ["score", "--solution", str(tmp_path / "solution.csv"), "--submission", str(tmp_path / "s.csv")]
    assert main([*command, "--competition", "tiny"]) == 0
    assert capsys.readouterr().out == "total        0.150000\n"
    assert main([*command, "--competition", "missing"]) == 1
    assert capsys.readouterr().err == (
        "error: competition 'missing': no such module in lumbar/competitions, expected one of lumbar_spine\n"
    )


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (KeyError("Fracture"), "metric of two-findings: KeyError: 'Fracture', expected a score"),
        ({"loss": 0.5}, r"metric of two-findings: found \['loss'\], expected a total among its terms"),
        (float("nan"), "metric of two-findings: total is nan, expected a finite number"),
        ({"total": 0.5, "worst": None}, "metric of two-findings: worst is None, expected a finite number"),
    ],
)
def test_a_metric_that_raises_or_gives_no_number_is_said_in_one_line(result, message):
    def score(solution, submission):
        if isinstance(result, Exception):
            raise result
        return result

    with pytest.raises(CohortError, match=f"^{message}$"):
        evaluate(replace(tiny.COMPETITION, score=score), pd.DataFrame(), pd.DataFrame())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slug": "Two Findings"}, "slug: found 'Two Findings', expected the name in kaggle.com/competitions/NAME"),
        ({"values": ()}, r"values: found \(\), expected 1 to 200 different values"),
        ({"values": ("a", "a")}, r"values: found \('a', 'a'\), expected 1 to 200 different values"),
        ({"values": ("study_id", "a")}, "values: found .* expected columns beside study_id"),
        ({"values": ("a,b",)}, "values: found .* each a column's name"),
        ({"rows": ("", "left")}, "rows: found .* expected an empty text alone or none"),
        ({"score": None}, "score: found None, expected a function of solution and submission"),
        ({"images": "images"}, "images: found 'images', expected a folder with {split} in its name"),
        ({"images": "../{split}"}, r"images: found '\.\./{split}', expected a relative path"),
        ({"split_names": ("a", "a")}, "split_names: found .* expected 2 different values"),
        ({"hours": 0}, "hours: found 0, expected a number above 0 up to 24"),
        ({"time_limit": "10h"}, "time_limit: found '10h', expected more than 0 and at most 3h"),
        ({"time_limit": "soon"}, "time limit 'soon': expected a duration"),
        ({"value_titles": ("one",)}, r"value_titles: found \('one',\), expected 2 titles"),
        ({"row_titles": ("one", "two")}, "row_titles: found .* expected titles of a grid of 1 rows"),
    ],
)
def test_a_competition_that_lacks_something_is_refused(changes, message):
    with pytest.raises(ManifestError, match=f"^competition .*: {message}"):
        replace(tiny.COMPETITION, **changes)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "lumbar.competitions.tiny: COMPETITION: found None, expected a Competition"),
        ({"COMPETITION": {"slug": "x"}}, r"COMPETITION: found {'slug': 'x'}, expected a Competition"),
    ],
)
def test_a_module_without_a_competition_is_refused(monkeypatch, tmp_path, bundle, members, message):
    module = types.ModuleType("lumbar.competitions.tiny")
    module.__dict__.update(members)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(ManifestError, match=f"weights_manifest.json: competition: .*{message}"):
        read_manifest(bundle)


@pytest.mark.parametrize(
    "source", ["raise RuntimeError('no\\nway')", "import nothing_of_that_name", "def f(:", "1 / 0"]
)
def test_a_module_that_cannot_be_imported_is_refused_in_one_line(monkeypatch, tmp_path, bundle, source):
    import lumbar.competitions

    monkeypatch.delitem(sys.modules, "lumbar.competitions.tiny")
    (tmp_path / "tiny.py").write_text(source)
    monkeypatch.setattr(lumbar.competitions, "__path__", [*lumbar.competitions.__path__, str(tmp_path)])
    with pytest.raises(
        ManifestError, match=r"lumbar\.competitions\.tiny: cannot be imported \(.*\), expected"
    ) as raised:
        read_manifest(bundle)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["read", "load", "predict"])
def test_a_chain_that_lacks_a_function_ends_the_run_before_anything_is_written(monkeypatch, tmp_path, bundle, name):
    module = types.ModuleType("lumbar.competitions.tiny")
    module.__dict__.update(vars(tiny))
    delattr(module, name)
    monkeypatch.setitem(sys.modules, "lumbar.competitions.tiny", module)
    root, out = write_data(tmp_path / "data", {1: ()}), tmp_path / "s.csv"
    with pytest.raises(ManifestError, match=f"lumbar.competitions.tiny: found no function {name}, expected read, load"):
        predict(root, bundle, out, processes=False)
    assert not out.exists()


@pytest.mark.parametrize("name", ["contract", "registry", "../x", "Tiny", "a.b", 3, None])
def test_names_that_are_no_competition_are_refused(tmp_path, name):
    folder = write_bundle(tmp_path / "bundle", competition=name, prior=tiny.PRIOR)
    with pytest.raises(ManifestError, match=r"weights_manifest\.json: competition"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ({}, "prior of study missing, expected study"),
        ({"study": [0.5]}, r"prior of study: found \[0.5\], expected 2 probabilities"),
        ({"study": [0.5, 1.5]}, "prior of study: found .* expected 2 probabilities"),
        ({"study": [0.5, 0.5], "spinal": [0.5, 0.5]}, "prior: found column 'spinal', expected study"),
    ],
)
def test_a_prior_of_another_form_is_refused(tmp_path, prior, message):
    with pytest.raises(ManifestError, match=message):
        read_manifest(write_bundle(tmp_path / "bundle", competition="tiny", prior=prior))


def test_the_chains_of_the_lumbar_spine_are_no_chains_of_another_competition(bundle):
    with pytest.raises(ManifestError, match="chain 'baseline', expected main, the chain of tiny"):
        chain_of("baseline", read_manifest(bundle))


def test_a_table_of_studies_keeps_its_other_columns_as_text(tmp_path):
    path = tmp_path / "test.csv"
    path.write_text("Study ID,sex,age\n11,F,007\nx,M,40\n12.0,M,\n")
    table = read_study_table(path, "Study ID")
    assert table.frame.to_dict("list") == {"Study ID": [11, 12], "sex": ["F", "M"], "age": ["007", ""]}
    assert table.studies() == [11, 12]
    (line,) = table.frame.attrs[PROBLEMS][None]
    assert "row 3: Study ID is" in line
    assert line.endswith("expected a whole number; unused")
    with pytest.raises(CohortError, match=r"test\.csv: found columns \['study_id', 'sex', 'age'\], expected patient"):
        read_study_table(path, "patient")


def test_the_lumbar_spine_is_what_a_manifest_means_that_names_none(tmp_path):
    manifest = read_manifest(write_bundle(tmp_path / "bundle"))
    assert manifest.competition is LUMBAR_SPINE
    assert competition_named("lumbar_spine") is LUMBAR_SPINE
    assert competition_names() == ["lumbar_spine"]
    assert LUMBAR_SPINE.row_ids(7) == row_ids(7)
    assert LUMBAR_SPINE.keys == COLUMNS
    assert LUMBAR_SPINE.header == ["row_id", "normal_mild", "moderate", "severe"]


def test_rows_of_several_names_are_told_apart():
    competition = Competition(
        slug="two-sides", title="Sides", values=("yes",), score=tiny.score, rows=("left", "right_upper")
    )
    assert competition.row_ids(5) == ["5_left", "5_right_upper"]
    assert competition.split_row_id("5_right_upper") == ("5", "right_upper")
    assert competition.form == "<study_id>_<row>"
    json.dumps(competition.header)
