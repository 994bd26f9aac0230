"""Pictures, table, markups and the report's layout as options of a run: what they leave, and what is refused."""

import csv
import errno
import json
import logging
import os
from dataclasses import replace

import numpy as np
import pytest

from kernel_bundles import write_bundle
from kernel_fakes import FAKE, write_cohort
from lumbar import __main__ as command
from lumbar.chains.contract import Chain, Picture
from lumbar.errors import CohortError
from lumbar.io import files
from lumbar.labels import row_ids
from lumbar.output.merge import merge
from lumbar.output.picture_files import draw_files
from lumbar.run import predict as predict_in_processes
from lumbar.workers.effort import FewerMembers
from lumbar.workers.schedule import Effort

OPTIONS = {"report": "report.html", "pictures": "png", "table": "findings.csv", "markups": "mrk"}


def predict(*arguments, **options):
    return predict_in_processes(*arguments, **{"processes": False, "chain": FAKE, **options})


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "bundle")


def places(folder, names=tuple(OPTIONS)):
    return {name: folder / OPTIONS[name] for name in names}


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_run_of_many_studies_leaves_everything_for_every_study(tmp_path, bundle):
    studies = {k: ("raise-predict",) if k == 4 else ("noted",) if k == 7 else () for k in range(1, 13)}
    root, out = write_cohort(tmp_path / "data", studies), tmp_path / "out"
    frame, record = predict(root, bundle, out / "s.csv", **places(out))
    done = [k for k in studies if k != 4]
    assert names(out / "report") == sorted(f"study-{k}.html" for k in studies)
    assert names(out / "png") == sorted(f"{k}_sagittal_t2_series_1_slice_3.png" for k in done)
    assert names(out / "mrk") == sorted(f"{k}.mrk.json" for k in studies)
    with open(out / "findings.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["row_id"] for row in rows] == frame["row_id"].tolist() == [r for k in studies for r in row_ids(k)]
    np.testing.assert_allclose([float(row["severe"]) for row in rows], frame["severe"].astype(float), atol=1e-8)
    assert {row["study_id"] for row in rows if row["status"] == "prior"} == {"4"}
    assert "3.dcm left out" in rows[6 * 25]["warnings"]
    assert "3.dcm left out" in (out / "report" / "study-7.html").read_text()
    assert (
        json.loads((out / "mrk" / "1.mrk.json").read_text())["markups"][0]["controlPoints"][0]["label"] == "L1/L2 canal"
    )
    assert [study["status"] for study in record["studies"]].count("predicted") == 11


def test_a_report_of_few_studies_or_one_that_is_asked_for_is_one_page(tmp_path, bundle):
    root = write_cohort(tmp_path / "data", {k: () for k in range(1, 13)})
    predict(root, bundle, report=tmp_path / "few" / "r.html", studies=10)
    predict(root, bundle, report=tmp_path / "one" / "r.html", report_layout="single")
    predict(root, bundle, report=tmp_path / "pages" / "r.html", report_layout="pages", studies=1)
    assert names(tmp_path / "few") == names(tmp_path / "one") == ["r.html"]
    assert names(tmp_path / "pages") == ["r.html", "r/study-1.html"]
    assert (tmp_path / "few" / "r.html").read_text().count("data:image/png") == 10
    single = (tmp_path / "one" / "r.html").read_text()
    assert "The first 10 studies" in single
    assert single.count("data:image/png") == 10


def test_nothing_is_drawn_or_written_that_is_not_asked_for(tmp_path, bundle):
    calls = []
    chain = replace(FAKE, draw=lambda study, result: calls.append(study.study_id) or [])
    predict(write_cohort(tmp_path / "data", {1: (), 2: ()}), bundle, tmp_path / "o" / "s.csv", chain=chain)
    assert calls == []
    assert names(tmp_path / "o") == ["s.csv", "s.csv.journal"]


@pytest.mark.parametrize("option", ["pictures", "markups", "table", "report"])
def test_an_output_that_cannot_be_written_is_refused_before_any_work(tmp_path, bundle, option):
    root = write_cohort(tmp_path / "data", {k: () for k in range(1, 13)})
    (tmp_path / "file").write_text("mine")
    before = names(tmp_path)
    for place in (tmp_path / "file" / "x", root / "test_images" / "x", root / "test_images" / "1"):
        with pytest.raises(CohortError, match=r"cannot be written|among the inputs"):
            predict(root, bundle, tmp_path / "s.csv", **{option: place})
    assert names(tmp_path) == before


@pytest.mark.parametrize("option", ["pictures", "markups"])
def test_a_folder_to_fill_is_no_file_no_input_and_no_part_of_the_bundle(tmp_path, bundle, option):
    root = write_cohort(tmp_path / "data", {1: ()})
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(root / "test_images", target_is_directory=True)
    for place in (
        tmp_path / "file",
        root,
        root / "test_images",
        tmp_path / "link",
        bundle,
        bundle / "weights",
        bundle / "x",
    ):
        with pytest.raises(CohortError, match=r"expected (a folder|one outside)"):
            predict(root, bundle, tmp_path / "s.csv", **{option: place})
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "s.csv").exists()
    assert not (bundle / "x").exists()


def test_the_same_place_twice_is_refused_and_so_is_the_folder_of_the_reports_pages(tmp_path, bundle):
    root = write_cohort(tmp_path / "data", {k: () for k in range(1, 13)})
    (tmp_path / "link").symlink_to(tmp_path)
    cases = [
        ({"pictures": tmp_path / "a", "markups": tmp_path / "link" / "a"}, "found for pictures and for markups"),
        ({"table": tmp_path / "a", "pictures": tmp_path / "a"}, "found for (table|pictures) and for (table|pictures)"),
        ({"report": tmp_path / "r.html", "pictures": tmp_path / "r"}, "found for pictures and for report pages"),
        ({"report": tmp_path / "f.html", "table": tmp_path / "f"}, "found for table and for report pages"),
    ]
    for options, message in cases:
        with pytest.raises(CohortError, match=message):
            predict(root, bundle, tmp_path / "s.csv", **options)
    (tmp_path / "r2").write_text("mine")
    with pytest.raises(CohortError, match="r2: cannot be written"):
        predict(root, bundle, tmp_path / "s.csv", report=tmp_path / "r2.html")
    with pytest.raises(CohortError, match="report layout: found 'page', expected one of auto, single, pages"):
        predict(root, bundle, tmp_path / "s.csv", report_layout="page")
    assert not (tmp_path / "s.csv").exists()


def test_a_full_disk_costs_the_extras_one_line_each_and_no_answer(tmp_path, bundle, monkeypatch, caplog):
    root, out = write_cohort(tmp_path / "data", {k: () for k in range(1, 13)}), tmp_path / "out"
    write = files._flush

    def full(temporary, *rest):
        if any(part in str(temporary) for part in ("png", "mrk", "study-", "report", "findings")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(temporary, *rest)

    monkeypatch.setattr(files, "_flush", full)
    with caplog.at_level(logging.ERROR, "lumbar"):
        _, record = predict(root, bundle, out / "s.csv", **places(out))
    assert {study["status"] for study in record["studies"]} == {"predicted"}
    assert names(out) == ["s.csv", "s.csv.journal"]
    lines = [entry.getMessage() for entry in caplog.records]
    assert [line.partition(":")[0] for line in lines if "the disk is full" in line] == [
        "pictures", "markups", "report pages", "table", "report",
    ]  # fmt: skip
    assert [line for line in lines if "the disk is full" not in line] == [
        f"{name}: not written for 12 studies" for name in ("pictures", "markups", "report pages")
    ]


def test_pictures_are_left_out_first_where_time_is_short(tmp_path, bundle, monkeypatch):
    monkeypatch.setattr("lumbar.run.Budget.next_effort", lambda self: Effort.NO_AUGMENTATION)
    root, out = write_cohort(tmp_path / "data", {1: (), 2: ()}), tmp_path / "out"
    _, record = predict(root, bundle, pictures=out)
    assert names(out) == []
    assert record["studies"][0]["problems"] == ["study 1: no test-time augmentation, no pictures, for lack of time"]


def test_members_left_out_are_told_in_log_record_report_and_after_going_on(tmp_path, bundle, monkeypatch, caplog):
    levels = iter([Effort.FULL, FewerMembers(("b_axial",)), FewerMembers(("b_axial", "a_wide"))])
    monkeypatch.setattr("lumbar.run.Budget.next_effort", lambda self: next(levels))
    root, out = write_cohort(tmp_path / "data", {1: (), 2: (), 3: ()}), tmp_path / "out"
    predict(root, bundle, out / "s.csv", studies=2)
    words = "left out for lack of time: b_axial in 2 studies, a_wide in 1 study"
    with caplog.at_level(logging.WARNING):
        _, record = predict(root, bundle, out / "s.csv", record=out / "r.json", report=out / "r.html", resume=True)
    assert words in [entry.getMessage() for entry in caplog.records]
    assert json.loads((out / "r.json").read_text())["left_out"] == record["left_out"] == {"b_axial": 2, "a_wide": 1}
    assert [study["problems"] for study in record["studies"]] == [
        [],
        ["study 2: one fold, without b_axial, for lack of time"],
        ["study 3: one fold, without b_axial, a_wide, no pictures, for lack of time"],
    ]
    assert f"Members {words}." in (out / "r.html").read_text()
    merge([out / "s.csv"], out / "m.csv", out / "m.json")
    assert json.loads((out / "m.json").read_text())["left_out"] == record["left_out"]


def test_pictures_of_a_chain_without_files_are_those_of_its_report_as_png(tmp_path):
    cv2 = pytest.importorskip("cv2")
    jpeg = cv2.imencode(".jpg", np.full((8, 8), 90, np.uint8))[1].tobytes()
    chain = Chain(FAKE.read, FAKE.load, FAKE.predict, lambda study, result: [Picture("a", jpeg)])
    (picture,) = draw_files(chain, None, None)
    assert picture.png.startswith(b"\x89PNG")
    assert cv2.imdecode(np.frombuffer(picture.png, np.uint8), cv2.IMREAD_GRAYSCALE).shape == (8, 8)


def test_the_command_takes_the_same_options(tmp_path, bundle, capsys, monkeypatch):
    given = {}

    def fake(*arguments, **options):
        given.update(options)
        return [], {"totals": {"rows": 25, "studies": 1, "predicted": 1}}

    monkeypatch.setattr("lumbar.run.predict", fake)
    root = write_cohort(tmp_path / "data", {1: ()})
    words = [
        "predict",
        "--data",
        root,
        "--weights",
        bundle,
        "--out",
        tmp_path / "s.csv",
        "--pictures",
        "p",
        "--table",
        "t.csv",
    ]
    assert command.main([str(word) for word in [*words, "--markups", "m", "--report-layout", "pages"]]) == 0
    chosen = {name: str(given[name]) for name in ("pictures", "table", "markups", "report_layout")}
    assert chosen == {"pictures": "p", "table": "t.csv", "markups": "m", "report_layout": "pages"}


def test_a_refusal_and_an_interrupt_leave_no_empty_folder(tmp_path, bundle, monkeypatch):
    root, new = write_cohort(tmp_path / "data", {1: ()}), tmp_path / "new" / "out"
    with pytest.raises(CohortError, match="found for out and for table"):
        predict(root, bundle, new / "s.csv", table=new / "s.csv", pictures=new / "p")
    assert not new.parent.exists()
    with pytest.raises(CohortError, match="found none of the studies"):
        predict(root, bundle, new / "s.csv", studies=["77"], **places(new))
    assert not new.parent.exists()
    (tmp_path / "kept").mkdir()

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("lumbar.run.Schedule", interrupted)
    for folder in (new, tmp_path / "kept"):
        with pytest.raises(KeyboardInterrupt):
            predict(root, bundle, folder / "s.csv", **places(folder), report_layout="pages")
    assert not new.parent.exists()
    assert list((tmp_path / "kept").iterdir()) == [], "a folder that was there stays"
