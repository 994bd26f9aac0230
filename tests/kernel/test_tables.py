"""Tables as spreadsheets write them: every good row counts, every bad one is named, none changes another."""

import gzip
import os

import pandas as pd
import pytest

from kernel_bundles import write_bundle
from kernel_fakes import FAKE, write_cohort
from lumbar.errors import CohortError
from lumbar.io.tables import csv_text, parse_id, parse_number, read_descriptions, read_series
from lumbar.labels import AXIAL_T2, COLUMNS, DESCRIPTIONS, SAGITTAL_T1, SAGITTAL_T2, SEVERITY_COLUMNS, row_ids
from lumbar.metric import read_labels, read_table
from lumbar.output.submission import expected_studies
from lumbar.run import predict

ROWS = [(4003253, 702807833, SAGITTAL_T2), (4003253, 1054713880, SAGITTAL_T1), (4646740, 3201256954, AXIAL_T2)]
PLAIN = "study_id,series_id,series_description\n" + "".join(f"{a},{b},{c}\n" for a, b, c in ROWS)
WRONG = "expected Sagittal T1, Sagittal T2/STIR, Axial T2; unused"


def write(folder, content):
    data = content.encode() if isinstance(content, str) else content
    (folder / "test_series_descriptions.csv").write_bytes(data)
    return folder


def lines(frame):
    return [line for lines in frame.attrs["problems"].values() for line in lines]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(PLAIN, id="as the competition writes it"),
        pytest.param(PLAIN.rstrip("\n"), id="no line end at the end"),
        pytest.param(b"\xef\xbb\xbf" + PLAIN.replace("\n", "\r\n").encode(), id="UTF-8 with mark and CRLF"),
        pytest.param(PLAIN.replace("\n", "\r"), id="CR alone"),
        pytest.param(PLAIN.encode("utf-16"), id="UTF-16 with mark"),
        pytest.param(PLAIN.encode("utf-16-le"), id="UTF-16 little endian without mark"),
        pytest.param(PLAIN.encode("utf-16-be"), id="UTF-16 big endian without mark"),
        pytest.param(PLAIN.encode("utf-32"), id="UTF-32"),
        pytest.param(PLAIN.replace(",", "\t").encode("utf-16"), id="Excel's Unicode text"),
        pytest.param(PLAIN.replace(",", ";"), id="semicolons"),
        pytest.param("sep=;\r\n" + PLAIN.replace(",", ";"), id="Excel's note of the separator"),
        pytest.param(PLAIN.replace(",", "|"), id="bars"),
        pytest.param(PLAIN.replace(",", " , "), id="blanks around separators"),
        pytest.param(gzip.compress(PLAIN.encode()), id="gzip"),
        pytest.param(PLAIN.replace("study_id,series_id", "Study ID , SERIES-ID"), id="other names of columns"),
        pytest.param(PLAIN.replace("Sagittal T1", "sagittal t1 ").replace("Axial T2", " AXIAL  T2"), id="descriptions"),
        pytest.param(PLAIN.replace("T2/STIR", "T2 / STIR"), id="blanks around a slash"),
        pytest.param("\n\n" + PLAIN.replace("\n", "\n\n"), id="blank lines"),
        pytest.param("".join(f"{line},\n" for line in PLAIN.splitlines()), id="a separator at the end of lines"),
        pytest.param("".join(f'"{line}"\n'.replace(",", '","') for line in PLAIN.splitlines()), id="quoted"),
        pytest.param(PLAIN.replace("702807833,", "702807833.0,"), id="one id as a float"),
        pytest.param(PLAIN.replace("4003253,", "4003253.0,").replace("4646740,", "4.64674E+06,", 0), id="floats"),
        pytest.param(PLAIN.replace("702807833", "7.02807833E+08"), id="an exponent with all digits"),
        pytest.param(PLAIN.replace("702807833", '"702,807,833"'), id="thousands, English"),
        pytest.param(PLAIN.replace(",", ";").replace("702807833", "702.807.833"), id="thousands, German"),
        pytest.param(PLAIN.replace("702807833", "702\u202f807\u202f833"), id="thousands, French"),
        pytest.param(PLAIN.replace("702807833", '"=""702807833"""'), id="a formula that keeps text"),
        pytest.param(PLAIN.replace("702807833", "+702807833"), id="a sign"),
        pytest.param(PLAIN.replace("Axial T2", "Axial T2\0\0"), id="zero bytes after a text"),
        pytest.param(
            "note,series_description,study_id,series_id\n"
            + "".join(f'"a ""b"",\nMüller",{c},{a},{b}\n' for a, b, c in ROWS),
            id="other columns, another order, cells of two lines",
        ),
        pytest.param(
            (
                "note,study_id,series_id,series_description\n" + "".join(f"Größe,{a},{b},{c}\n" for a, b, c in ROWS)
            ).encode("latin-1"),
            id="Latin-1",
        ),
    ],
)
def test_one_table_in_many_forms(tmp_path, content):
    frame = read_descriptions(write(tmp_path, content), "test")
    assert list(frame.itertuples(index=False, name=None)) == ROWS
    assert frame.dtypes.astype(str).tolist()[:2] == ["int64", "int64"]
    assert lines(frame) == []


@pytest.mark.parametrize(
    ("row", "study", "message"),
    [
        (",,", None, "row 5: found separators alone, expected values; left out"),
        (",,\n,,\n , ,", None, "row 5 and 2 more: found separators alone, expected values; left out"),
        ("4003253,,Axial T2", 4003253, "row 5: series_id is blank, expected a whole number; unused"),
        ("4003253,NaN,Axial T2", 4003253, "row 5: series_id is blank, expected a whole number; unused"),
        (",12,Axial T2", None, "row 5: series 12: study_id is blank, expected a whole number; unused"),
        ("sub-01,12,Axial T2", None, "row 5: series 12: study_id is 'sub-01', expected a whole number; unused"),
        ("4003253,12.5,Axial T2", 4003253, "row 5: series_id is '12.5', expected a whole number; unused"),
        ("4003253,-12,Axial T2", 4003253, "row 5: series_id is '-12', expected a whole number of at least 0; unused"),
        ("4003253,99999999999999999999,Axial T2", 4003253, "expected a whole number below 2**63; unused"),
        (
            "4003253,1.05471E+09,Axial T2", 4003253,
            "series_id is '1.05471E+09', expected all digits, which a spreadsheet rounded away; unused",
        ),
        ("4003253,1.2.840.113619.2,Axial T2", 4003253, "series_id is '1.2.840.113619.2', expected a whole number"),
        ("4003253,1\x002,Axial T2", 4003253, "row 5: series_id is "),
        ("4003253,12,", 4003253, f"row 5: series 12: found description blank, {WRONG}"),
        ("4003253,12", 4003253, f"row 5: series 12: found description blank, {WRONG}"),
        ("4003253,12,Coronal T2", 4003253, f"row 5: series 12: found description 'Coronal T2', {WRONG}"),
        ("4003253,12,Axial T2,x", 4003253, "row 5: series 12: found 4 cells, expected 3; unused"),
        ("4003253", 4003253, "row 5: series_id is blank, expected a whole number"),
        ('4003253,12,"Axial', 4003253, f"found description 'Axial', {WRONG}"),
        (
            "4003253,702807833,Sagittal T2/STIR", 4003253,
            "row 5: series 702807833: found again, expected in row 2 alone; read once",
        ),
        (
            "4003253,702807833,Axial T2", 4003253,
            "row 5: series 702807833 is described as Sagittal T2/STIR and Axial T2, expected one of them; row 2 holds",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("separator", [",", ";"])
def test_a_bad_row_is_named_and_changes_no_other(tmp_path, row, study, message, separator):
    table = read_series(write(tmp_path, (PLAIN + row + "\n").replace(",", separator)), "test")
    assert list(table.frame.itertuples(index=False, name=None)) == ROWS
    assert [problem.study_id for problem in table.problems] == [study]
    assert len(lines(table.frame)) == 1
    assert message in lines(table.frame)[0]
    assert 4003253 in table.studies()


def test_thousands_of_bad_rows_are_few_lines(tmp_path):
    frame = read_descriptions(write(tmp_path, PLAIN + "x,y,z\n" * 5000), "test")
    assert list(frame.itertuples(index=False, name=None)) == ROWS
    assert len(lines(frame)) == 21
    assert lines(frame)[-1] == "table of series, and 4980 more rows"


def test_a_stray_quote_swallows_no_row(tmp_path):
    content = PLAIN.replace("1054713880,Sag", '1054713880,"Sag')
    frame = read_descriptions(write(tmp_path, content), "test")
    assert list(frame.itertuples(index=False, name=None)) == ROWS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"not a CSV table \(No columns to parse from file\)"),
        ("\n \n,,\n", r"not a CSV table \(No columns to parse from file\)"),
        ("study,series\n1,2\n", r"found columns \['study', 'series'\], expected also \['study_id', 'series_id'"),
        (b"PK\x03\x04" + bytes(500), r"not a CSV table \(found a workbook \(\.xlsx\) or archive, expected text"),
        (b"\xd0\xcf\x11\xe0" + bytes(500), r"not a CSV table \(found a workbook \(\.xls\)"),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), r"not a CSV table \(found a picture"),
        (bytes(range(256)) * 4, r"not a CSV table \(found bytes that are no text\)"),
        (bytes(5000), r"not a CSV table \((found bytes that are no text|No columns)"),
        (gzip.compress(PLAIN.encode())[:-12], r"not a CSV table \(gzip data"),
        ("\x1b[31mstudy,b\n" + "1,2\n" * 50, r"found columns \['\\+x1b\[31mstudy', 'b'\]"),
    ],
)
def test_a_file_that_is_no_table_is_one_line(tmp_path, content, message):
    with pytest.raises(CohortError, match=r"test_series_descriptions\.csv: " + message) as caught:
        read_descriptions(write(tmp_path, content), "test")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_a_very_long_cell_is_the_fault_of_its_row_alone(tmp_path):
    frame = read_descriptions(write(tmp_path, PLAIN + "1,2," + "x" * 200_000 + "\n" + f"5,6,{AXIAL_T2}\n"), "test")
    assert len(frame) == len(ROWS) + 1
    (line,) = lines(frame)
    assert WRONG in line
    assert len(line) < 200


def test_a_pipe_or_a_folder_is_no_table_and_nobody_waits(tmp_path):
    os.mkfifo(tmp_path / "test_series_descriptions.csv")
    with pytest.raises(CohortError, match="found a folder, pipe or device, expected a file"):
        read_descriptions(tmp_path, "test")
    (tmp_path / "train_series_descriptions.csv").mkdir()
    with pytest.raises(CohortError, match=r"Is a directory|found a folder"):
        read_descriptions(tmp_path, "train")


def test_a_packed_table_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("lumbar.io.text_table.MAX_TABLE_BYTES", 1 << 20)
    write(tmp_path, gzip.compress(b"study_id,series_id,series_description\n" + b"\n" * (4 << 20)))
    with pytest.raises(CohortError, match="found more than 1 MB, expected a table"):
        read_descriptions(tmp_path, "test")


@pytest.mark.parametrize(
    "text", ["1.5", "", "nan", "inf", "x", "1_000", "0x10", "1,000", "1 2", "-1", "1e400", "1e", ".", "12a", "9" * 50]
)
def test_what_is_no_id_is_none(text):
    with pytest.raises(ValueError, match=r"a whole number|all digits"):
        parse_id(text)


def test_numbers_with_a_decimal_comma_where_the_separator_is_none():
    assert parse_number("12,5", has_decimal_comma=True) == 12.5
    assert parse_number("12.5", has_decimal_comma=True) == 12.5
    for text in ("12,5", "1_0", "x"):
        with pytest.raises(ValueError, match=r"number|convert"):
            parse_number(text)


# ---- a whole run ----------------------------------------------------------------------------------------------------


def test_a_run_over_a_table_with_bad_rows_predicts_all_and_says_what_was_wrong(tmp_path, caplog):
    root = write_cohort(tmp_path / "data", {1: (), 2: ()})
    with open(root / "test_series_descriptions.csv", "a") as table:
        table.write("2,,Axial T2\nsub-01,5,Axial T2\n,,\n")
    seen = {}

    def read(root, split, study_id, descriptions, workers):
        seen[study_id] = descriptions[descriptions["study_id"] == study_id]["series_id"].tolist()
        return FAKE.read(root, split, study_id, descriptions, workers)

    chain = type(FAKE)(read=read, load=FAKE.load, predict=FAKE.predict, draw=FAKE.draw)
    report = tmp_path / "report.html"
    _, record = predict(root, write_bundle(tmp_path / "bundle"), tmp_path / "s.csv", chain=chain, report=report)
    assert seen == {1: [10, 11, 12], 2: [20, 21, 22]}
    assert [study["status"] for study in record["studies"]] == ["predicted", "predicted"]
    line = "table of series, row 8: series_id is blank, expected a whole number; unused"
    assert record["studies"][1]["problems"] == [line]
    assert [text.split(":")[0] for text in record["problems"]] == ["table of series, row 9", "table of series, row 10"]
    assert line in caplog.text
    assert "study_id is &#39;sub-01&#39;" in report.read_text()


# ---- samples, submissions and solutions -----------------------------------------------------------------------------


def sample(studies):
    return "row_id,normal_mild,moderate,severe\n" + "".join(
        f"{row},0.5,0.3,0.2\n" for s in studies for row in row_ids(s)
    )


@pytest.mark.parametrize(
    "content",
    [
        sample([9, 2]).replace(",", ";"),
        sample([9, 2]).encode("utf-16"),
        sample([9, 2]) + ",,,\n\n",
        sample([9, 2]).replace("row_id", "\ufeffROW_ID "),
        sample([9, 2]).replace("\n9_", "\n 9_"),
        "".join(line.partition(",")[0] + "\n" for line in sample([9, 2]).splitlines()),
    ],
)
def test_samples_as_spreadsheets_write_them(tmp_path, content, caplog):
    (tmp_path / "sample_submission.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert expected_studies(tmp_path, "test", [2, 9], [2, 9]) == [9, 2]
    assert caplog.text == ""


def test_one_bad_row_of_a_sample_is_named_and_the_others_count(tmp_path, caplog):
    (tmp_path / "sample_submission.csv").write_text(sample([9, 2]) + "total,1,1,1\n")
    assert expected_studies(tmp_path, "test", [2, 9], [2, 9]) == [9, 2]
    assert "sample_submission.csv: found row_id 'total', expected <study_id>_" in caplog.text
    assert str(tmp_path) not in caplog.text


def test_scores_are_read_from_any_form(tmp_path):
    (tmp_path / "plain.csv").write_text(sample([9]))
    (tmp_path / "german.csv").write_bytes(sample([9]).replace(",", ";").replace("0.", "0,").encode("utf-16"))
    left, right = (read_table(tmp_path / name, "a submission") for name in ("plain.csv", "german.csv"))
    pd.testing.assert_frame_equal(left, right)
    assert left[list(SEVERITY_COLUMNS)].dtypes.eq("float64").all()
    solution = pd.DataFrame([[9.0, *["Moderate "] * 25]], columns=["study_id", *COLUMNS])
    solution.to_csv(tmp_path / "solution.csv", index=False)
    (tmp_path / "solution.csv").write_text((tmp_path / "solution.csv").read_text() + "," * 25 + "\n")
    ids, labels = read_labels(read_table(tmp_path / "solution.csv", "the solution"))
    assert ids == [9]
    assert (labels == 1).all()


def test_a_blank_id_in_a_solution_is_named_with_its_row(tmp_path):
    rows = [[9, *["Severe"] * 25], ["", *["Severe"] * 25]]
    pd.DataFrame(rows, columns=["study_id", *COLUMNS]).to_csv(tmp_path / "solution.csv", index=False)
    with pytest.raises(CohortError, match=r"study_id that is no number, expected integers \(blank in row 3\)"):
        read_labels(read_table(tmp_path / "solution.csv", "the solution"))


# ---- written tables -------------------------------------------------------------------------------------------------


def test_written_cells_are_no_formulas_and_numbers_stay_numbers():
    texts = ["=1+1", "+x", "-x", "@x", "\t=x", "\r=x", " =x", "＝1", "-5", "Severe", "a\x1b[31mb"]
    frame = pd.DataFrame({"text": pd.Series(texts, dtype=object), "number": [-1.5] * len(texts)})
    cells = [line.rpartition(",")[0] for line in csv_text(frame).splitlines()[1:]]
    assert cells == ["'=1+1", "'+x", "'-x", "'@x", "' =x", "' =x", "' =x", "'＝1", "-5", "Severe", "a\\x1b[31mb"]
    assert {line.rpartition(",")[2] for line in csv_text(frame).splitlines()[1:]} == {"-1.5"}
    plain = pd.DataFrame({"row_id": row_ids(5), "severe": [0.25] * 25})
    assert csv_text(plain) == plain.to_csv(index=False)
    assert set(DESCRIPTIONS) == {SAGITTAL_T1, SAGITTAL_T2, AXIAL_T2}
