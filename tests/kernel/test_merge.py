"""Parts joined are the same bytes as one run; what is missing, double or foreign is named, and nothing is written."""

import json
import shutil
from dataclasses import replace

import pytest

from kernel_bundles import write_bundle
from kernel_fakes import FAKE, write_cohort
from lumbar import __main__ as command
from lumbar.errors import CohortError
from lumbar.io.checked_lines import line
from lumbar.output.merge import merge
from lumbar.run import predict

STUDIES = {k: ("raise-read",) if k == 5 else ("noted",) if k == 7 else () for k in range(1, 13)}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """One run, and the same studies in three parts, all with report and record."""
    folder = tmp_path_factory.mktemp("cohort")
    root, bundle = write_cohort(folder / "data", STUDIES), write_bundle(folder / "bundle")
    options = {"chain": FAKE, "processes": False}
    outputs = {"report": folder / "one.html", "record": folder / "one.json", "table": folder / "one-table.csv"}
    predict(root, bundle, folder / "one.csv", report_layout="single", **outputs, **options)
    for index in (2, 0, 1):
        outputs = {"report": folder / "s.html", "table": folder / "s-table.csv"}
        predict(root, bundle, folder / "s.csv", shard=f"{index}/3", **outputs, **options)
    return folder


@pytest.fixture
def parts(cohort, tmp_path):
    for path in cohort.glob("s.*"):
        shutil.copy(path, tmp_path)
    return [tmp_path / f"s.{index}-of-3.csv" for index in range(3)]


def test_parts_joined_are_what_one_run_writes(cohort, parts, tmp_path):
    assert [part.read_text().count("\n") for part in parts] == [1, 1 + 9 * 25, 1 + 3 * 25]
    totals = merge(
        parts[::-1], tmp_path / "new" / "m.csv", tmp_path / "m.json", tmp_path / "m.html", tmp_path / "t.csv"
    )
    assert totals == {"rows": 300, "studies": 12, "predicted": 11}
    assert (tmp_path / "new" / "m.csv").read_bytes() == (cohort / "one.csv").read_bytes()
    assert (tmp_path / "t.csv").read_bytes() == (cohort / "one-table.csv").read_bytes()
    one, joined = (json.loads(path.read_text()) for path in (cohort / "one.json", tmp_path / "m.json"))
    assert list(joined) == list(one)
    for record in (one, joined):
        record["seconds"].clear()
        record["devices"] = sorted(set(record["devices"]))
        for study in record["studies"]:
            study["seconds"] = 0
    assert joined == one
    page = (tmp_path / "m.html").read_text()
    assert page.count("data:image/png") == (cohort / "one.html").read_text().count("data:image/png") > 0


def test_answers_come_from_the_journal_where_a_part_was_killed_before_its_last_write(cohort, parts, tmp_path):
    parts[1].write_text("prior rows, as after a kill before the last write")
    merge(parts, tmp_path / "m.csv")
    assert (tmp_path / "m.csv").read_bytes() == (cohort / "one.csv").read_bytes()


def other(part, key, value):
    """The part with another value in its header."""
    journal = part.with_name(part.name + ".journal")
    texts = journal.read_bytes().splitlines(keepends=True)
    head, body = (json.loads(text) for text in texts[0].rstrip(b"\n").split(b"\t")[1:])
    journal.write_bytes(line(head | {key: value}, body) + b"".join(texts[1:]))


def cut(part):
    journal = part.with_name(part.name + ".journal")
    texts = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(texts[:-1]) + texts[-1][:-9])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.pop(1), r"found 2 of 3 parts, expected all: missing 1-of-3 with \d studies$"),
        (lambda p: p.append(p[0]), r"s\.0-of-3\.csv\.journal: found twice among the parts, expected each part once"),
        (lambda p: p.append(copy(p[2])), r"copy\.csv\.journal: found study \d+, which s.2-of-3.csv.journal has too"),
        (lambda p: other(p[1], "manifest_hash", "a" * 64), r"s.1-of-3.csv.journal: found bundle a{15}…, expected \w+…"),
        (lambda p: other(p[1], "code_sha256", "b" * 64), "found code b{15}…, expected"),
        (lambda p: other(p[2], "versions", {"lumbar": "9"}), r"found lumbar 9, .*expected lumbar 0.1.0.* as s.0-of-3"),
        (lambda p: other(p[2], "shard", [2, 4]), "found a part of 4, expected one of 3 as the others are"),
        (lambda p: other(p[0], "journal", 7), "found a journal of version 7, expected version 1"),
        (lambda p: cut(p[2]), r"found no outcome of 1 study \(\d+\), expected one for each; run this part again wi"),
        (lambda p: p[0].unlink(), r"s.0-of-3.csv: not found, expected the submission of a part"),
        (lambda p: p[0].with_name(p[0].name + ".journal").unlink(), "csv.journal: not found, expected the journal"),
        (lambda p: p[0].with_name(p[0].name + ".journal").write_text("no journal\n"), "found no header of a journal"),
        (lambda p: p[0].with_name(p[0].name + ".journal").write_text(""), "found an empty file, expected the journal"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused_in_one_line(parts, tmp_path, spoil, message):
    spoil(parts)
    with pytest.raises(CohortError, match=message) as caught:
        merge(parts, tmp_path / "m.csv")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m.csv").exists()


def copy(part):
    for suffix in ("", ".journal"):
        shutil.copy(f"{part}{suffix}", part.with_name(f"copy.csv{suffix}"))
    return part.with_name("copy.csv")


@pytest.mark.parametrize("name", ["s.0-of-3.csv", "s.1-of-3.csv.journal"])
def test_an_output_in_the_place_of_a_part_is_refused(parts, tmp_path, name):
    before = (tmp_path / name).read_bytes()
    with pytest.raises(CohortError, match="found a part, expected a file of its own for each output"):
        merge(parts, tmp_path / name)
    assert (tmp_path / name).read_bytes() == before


def test_a_part_without_studies_writes_its_header_and_is_joined(tmp_path):
    root, bundle = write_cohort(tmp_path / "data", {1: (), 2: ()}), write_bundle(tmp_path / "bundle")
    chain = replace(FAKE, load=never)
    counts = []
    for index in range(4):
        is_empty = index in (1, 3)
        frame, _ = predict(root, bundle, tmp_path / "s.csv", chain=chain if is_empty else FAKE, processes=False,
                           shard=f"{index}/4")  # fmt: skip
        counts.append(len(frame))
    assert counts == [25, 0, 25, 0]
    assert (tmp_path / "s.1-of-4.csv").read_text() == "row_id,normal_mild,moderate,severe\n"
    assert merge(sorted(tmp_path.glob("s.*.csv")), tmp_path / "m.csv")["studies"] == 2


def never(manifest, device):
    raise AssertionError("no study, no networks")


def test_cohorts_that_share_no_study_are_joined_one_after_another(cohort, parts, tmp_path):
    root, bundle = write_cohort(tmp_path / "data", {99: (), 98: ()}), cohort / "bundle"
    predict(root, bundle, tmp_path / "other.csv", chain=FAKE, processes=False)
    assert merge([*parts, tmp_path / "other.csv"], tmp_path / "m.csv")["studies"] == 14
    assert (tmp_path / "m.csv").read_text().startswith((cohort / "one.csv").read_text())


def test_the_command_joins_and_says_what_it_wrote(cohort, parts, tmp_path, capsys):
    words = ["merge", "--out", tmp_path / "m.csv", "--record", tmp_path / "m.json", "--report", tmp_path / "m.html"]
    assert command.main([*map(str, words), *map(str, parts)]) == 0
    assert capsys.readouterr().out == (
        f"{tmp_path}/m.csv: 300 rows; 11 of 12 studies predicted\n1 kept their prior; the record says why\n"
    )
    assert command.main(["merge", "--out", str(tmp_path / "n.csv"), str(parts[0])]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: found 1 of 3 parts, expected all: missing 1-of-3, 2")
