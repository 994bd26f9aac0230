"""No name of a person, no path and no escape sequence leaves a run or an inspection, wherever one stood."""

import json
import logging
import os
import shutil
from dataclasses import replace

import pytest
from pydicom import dcmread

from kernel_bundles import write_bundle
from kernel_dicom import write_dicom_cohort
from kernel_fakes import FAKE, write_cohort
from lumbar import __main__ as command
from lumbar.dicom.inspect import describe
from lumbar.io.text import masked_name
from lumbar.run import predict
from lumbar.study import read_study

SECRETS = ("Doe", "DOE", "Jane", "JANE", "\x1b", "\udce9", "=HYPERLINK", "19700101")


def assert_no_secret(text, *more):
    for secret in (*SECRETS, *more):
        assert secret not in text, secret


@pytest.fixture
def root(tmp_path):
    """A cohort below a folder named after a patient, with unreadable files whose names tell more."""
    root = tmp_path / "DOE^JANE 19700101"
    root.mkdir()
    write_dicom_cohort(root, (11, 12))
    series = root / "test_images" / "12" / "121"
    for name in ("Doe^Jane.dcm", "\x1b[31mJane.dcm", os.fsdecode(b"caf\xe9 Doe.dcm"), "=HYPERLINK(1).dcm", "DOE.dcm"):
        (series / name).write_text("this is no image\n")
    shutil.copy(series / "3.dcm", series / "Jane Doe's copy.dcm")
    with open(root / "test_series_descriptions.csv", "a") as table:
        table.write('12,129,Axial T2\n12,130,Doe Jane \x1b[31m\n12,DOE^JANE,Axial T2\n"=HYPERLINK(1) Doe",7,Axial T2\n')
    return root


def run(root, tmp_path, chain):
    out, report, record = (tmp_path / name for name in ("s.csv", "r.html", "r.json"))
    predict(root, write_bundle(tmp_path / "bundle"), out, chain=chain, report=report, record=record)
    return out.read_text(), report.read_text(), record.read_text()


def test_a_run_over_such_folders_leaks_nothing(root, tmp_path, caplog):
    with caplog.at_level(logging.DEBUG, "lumbar"):
        submission, report, record = run(root, tmp_path, replace(FAKE, read=read_study, predict=predict_any))
    for text in (submission, report, record, caplog.text):
        assert_no_secret(text, str(tmp_path))
    study = json.loads(record)["studies"][1]
    assert study["status"] == "predicted"
    lines = "\n".join(study["problems"])
    for name in ("Doe^Jane.dcm", os.fsdecode(b"caf\xe9 Doe.dcm"), "DOE.dcm"):
        assert f"121/{masked_name(name)}: " in lines
    assert "129: found No such file or directory" in lines
    assert "row 9: series 130: found description '…" in lines


def predict_any(study, networks, prior, effort):
    return FAKE.predict(type("S", (), {"traits": set(), "study_id": study.study_id}), networks, prior, effort)


@pytest.mark.parametrize("where", ["read", "predict", "draw"])
def test_what_a_chain_raises_leaks_nothing(tmp_path, caplog, where):
    root = write_cohort(tmp_path / "Doe Jane", {1: ("DOE^JANE.dcm",), 2: ()})

    def fail(*arguments):
        path = root / "test_images" / "1" / "DOE^JANE.dcm"
        raise OSError(5, f"cannot read {path}\x1b[31m", str(path))

    with caplog.at_level(logging.DEBUG, "lumbar"):
        submission, report, record = run(root, tmp_path, replace(FAKE, **{where: fail}))
    for text in (submission, report, record, caplog.text):
        assert_no_secret(text, str(tmp_path))
    assert masked_name("DOE^JANE.dcm") in record


def test_the_command_line_leaks_nothing_of_the_data(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lumbar.chains.registry.MAIN", replace(FAKE, read=read_study, predict=predict_any))
    monkeypatch.setattr("lumbar.run.cuda_devices", list)
    arguments = ["predict", "--data", root, "--weights", write_bundle(tmp_path / "bundle"), "--out", tmp_path / "s.csv"]
    assert command.main([str(argument) for argument in arguments]) == 0
    captured = capsys.readouterr()
    assert_no_secret(captured.err)
    assert_no_secret(captured.out)


def test_an_error_about_a_path_is_safe_to_print(tmp_path, capsys):
    path = tmp_path / "a\x1b[31m\nb\udce9"
    for arguments in (("inspect", path), ("score", "--solution", path, "--submission", path)):
        assert command.main([str(argument) for argument in arguments]) == 1
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        assert captured.err.rstrip("\n").isprintable()
        assert "a\\x1b[31m b\\xe9" in captured.err


def spoil(path):
    """A readable slice with a person's name in every free text, and escape sequences."""
    data = dcmread(path)
    data.PatientName, data.PatientID, data.PatientBirthDate = "Doe^Jane", "1970-77", "19700101"
    data.SeriesDescription = "T2 TSE SAG Doe Jane \x1b]0;x\x07"
    data.Manufacturer = "SIEMENS of Doe"
    data.save_as(path)


def test_inspect_refuses_showing_no_name_below_the_path_that_was_given(tmp_path, capsys):
    study = tmp_path / "12"
    (study / "Jane").mkdir(parents=True)
    (study / "Jane" / "Doe.dcm").write_bytes(b"x" * 300)
    for path in (study, tmp_path):
        assert command.main(["inspect", str(path)]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"error: {path}: found ")
        assert captured.err.count("\n") == 1
        assert_no_secret(captured.err)


def test_a_series_whose_folder_has_a_name_that_is_no_utf8_is_described(root):
    study = root / "test_images" / "12"
    (study / "121").rename(study / "\udce9")
    text = describe(study)
    assert f"series {masked_name(chr(0xDCE9))}: " in text
    assert "has none of the descriptions" in text


def test_inspect_shows_words_of_the_trade_and_masks_the_rest(root):
    study = root / "test_images" / "12"
    spoil(study / "121" / "1.dcm")
    (study / "121").rename(study / "DOE^JANE")
    (study / "Jane").mkdir()
    shutil.copy(study / "DOE^JANE" / "1.dcm", study / "Doe.dcm")
    texts = [describe(study / "DOE^JANE"), describe(study / "Doe.dcm")]
    (study / "Doe.dcm").unlink()
    texts.append(describe(study))
    for text in texts:
        assert_no_secret(text, str(root))
    assert "series T2 TSE SAG …" in texts[1]
    assert "manufacturer SIEMENS …" in texts[1]
    assert f"series {masked_name('DOE^JANE')}: " in texts[2]
    assert f"problem: {masked_name('Jane')}: found no *.dcm file" in texts[2]
