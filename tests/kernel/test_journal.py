"""What is on the disk survives: a journal cut anywhere, a run that goes on from it, and what it refuses."""

import json
import logging
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from kernel_bundles import write_bundle
from kernel_fakes import FAKE, probs_of, write_cohort
from lumbar.chains.contract import Mark, Outcome, Picture, SliceView
from lumbar.errors import CohortError
from lumbar.io.checked_lines import CheckedLines, line
from lumbar.io.fingerprint import folder_fingerprint
from lumbar.output.journal import Journal
from lumbar.output.outcome_json import outcome_body, outcome_from, outcome_head, outcome_of, outcome_text
from lumbar.run import predict

STUDIES = {1: (), 2: ("raise-read",), 3: ("noted",), 4: (), 5: ()}


class Run:
    """A cohort, a bundle, and a prediction in threads that counts what it reads."""

    def __init__(self, folder, studies=STUDIES):
        self.folder, self.out = folder, folder / "s.csv"
        self.root = write_cohort(folder / "data", studies)
        self.bundle = write_bundle(folder / "bundle")
        self.journal = folder / "s.csv.journal"
        self.read = []

    def __call__(self, **options):
        self.read = []

        def read(root, split, study_id, table, workers):
            self.read.append(study_id)
            return FAKE.read(root, split, study_id, table, workers)

        options = {"processes": False, "resume": True, "chain": replace(FAKE, read=read), **options}
        return predict(self.root, self.bundle, self.out, **options)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run that ended: its files, never to be written."""
    run = Run(tmp_path_factory.mktemp("done"))
    run()
    return run


def copied(done, folder):
    """The same files elsewhere."""
    shutil.copytree(done.folder, folder, dirs_exist_ok=True, copy_function=shutil.copy2)
    run = Run.__new__(Run)
    run.folder, run.root, run.bundle = folder, folder / "data", folder / "bundle"
    run.out, run.journal, run.read = folder / "s.csv", folder / "s.csv.journal", []
    return run


def records(path):
    return [json.loads(text.split("\t")[1]) for text in path.read_text().splitlines()]


# ---- the file ------------------------------------------------------------------------------------------------------


def test_a_file_cut_at_any_byte_keeps_every_record_before(tmp_path):
    whole = b"".join(line({"n": number}, {"text": "tab\tline\nend"}) for number in range(3))
    ends = [len(line({"n": 0}, {"text": "tab\tline\nend"})) * count for count in range(4)]
    for length in range(len(whole) + 1):
        path = tmp_path / "journal"
        path.write_bytes(whole[:length])
        lines = CheckedLines(path)
        kept = [head["n"] for _, head in lines.records()]
        assert kept == list(range(sum(end <= length for end in ends) - 1))
        place = lines.append({"n": 9})
        assert lines.body(place) == ({"n": 9}, {})
        lines.close()
        assert path.read_bytes() == whole[: ends[len(kept)]] + line({"n": 9}, {})


def test_a_record_whose_checksum_is_wrong_costs_itself_alone(tmp_path):
    data = [line({"n": number}, {}) for number in range(3)]
    (tmp_path / "journal").write_bytes(data[0] + data[1].replace(b'"n":1', b'"n":7') + data[2])
    lines = CheckedLines(tmp_path / "journal")
    assert [head["n"] for _, head in lines.records()] == [0, 2]
    lines.close()


def test_a_full_disk_leaves_whole_records_and_the_journal_catches_up(tmp_path, monkeypatch, caplog):
    journal, real = Journal(tmp_path / "journal"), os.write
    journal[1] = Outcome(1, probs=probs_of(1))
    size = (tmp_path / "journal").stat().st_size

    def full(descriptor, data):
        if len(data) > 40:
            return real(descriptor, data[:40])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lumbar.io.checked_lines.os.write", full)
    journal[2] = Outcome(2, probs=probs_of(2))
    assert "journal: cannot be written (No space left on device), expected room for a record" in caplog.text
    assert (tmp_path / "journal").stat().st_size == size
    np.testing.assert_array_equal(journal[2].probs, probs_of(2))
    monkeypatch.undo()
    journal[3] = Outcome(3)
    journal.close()
    assert [record["study"] for record in records(tmp_path / "journal")] == [1, 2, 3]


def test_an_outcome_comes_back_bit_for_bit():
    view = SliceView("canal", "7", 3, None, (10, 20), (0.5, 1.5), (2.0, 2.0), 0.3, ("A", "P"),
                     (Mark("l1_l2", None, 1.0, 2.0), Mark("l4_l5", "left", 0.1, 0.2, 4, 0.9)))  # fmt: skip
    outcome = Outcome(
        "1.2.3", probs_of(1), ["a\tb\n\udce9"], {"read": 0.1}, [{"x_px": 0.1}], [{"level": "l1_l2"}],
        [Picture("T2", b"\x89PNG\x00", view, "t2"), Picture("T1", b"")], files="ab", inputs=[{"series_id": "1.2"}],
    )  # fmt: skip
    for back in (outcome_of(outcome_head(outcome), outcome_body(outcome)), outcome_from(outcome_text(outcome))):
        assert back.probs.tobytes() == outcome.probs.tobytes()
        assert replace(back, probs=None) == replace(outcome, probs=None)


def test_a_fingerprint_tells_names_sizes_and_times(tmp_path):
    folder = tmp_path / "1"
    (folder / "7").mkdir(parents=True)
    (folder / "7" / "1.dcm").write_bytes(b"abc")
    seen = [folder_fingerprint(folder), folder_fingerprint(tmp_path / "none")]
    (folder / "7" / "1.dcm").write_bytes(b"abcd")
    seen.append(folder_fingerprint(folder))
    os.utime(folder / "7" / "1.dcm", (1e9, 1e9))
    seen.append(folder_fingerprint(folder))
    (folder / "7" / "1.dcm").rename(folder / "7" / "2.dcm")
    seen.append(folder_fingerprint(folder))
    assert len(set(seen)) == 5
    assert folder_fingerprint(folder) == seen[-1]


# ---- going on ------------------------------------------------------------------------------------------------------


def test_nothing_is_repeated_not_even_a_study_that_cannot_be_read(done, tmp_path):
    run = copied(done, tmp_path)
    before = run.out.read_bytes()
    run.out.unlink()
    _, record = run(record=tmp_path / "record.json")
    assert run.read == []
    assert run.out.read_bytes() == before
    assert [study["status"] for study in record["studies"]] == ["predicted", "prior", *["predicted"] * 3]
    assert record["studies"][2]["problems"] == ["study 3: 3.dcm left out"]
    assert record["seconds"]["localise"] == 1.0  # of four studies, once each
    assert json.loads((tmp_path / "record.json").read_text()) == record


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_a_run_goes_on_from_a_journal_that_was_cut(done, tmp_path, keep):
    run = copied(done, tmp_path)
    data, before = run.journal.read_bytes(), run.out.read_bytes()
    run.journal.write_bytes(data[: int(len(data) * keep)])
    heads = [record["study"] for record in records_of(data[: int(len(data) * keep)]) if "study" in record]
    run()
    assert sorted(run.read) == sorted(set(STUDIES) - set(heads))
    assert run.out.read_bytes() == before


def records_of(data):
    whole, _, _ = data.rpartition(b"\n")
    return [json.loads(text.split(b"\t")[1]) for text in whole.splitlines()]


def test_studies_whose_files_rows_or_number_changed_are_done_again(done, tmp_path):
    run = copied(done, tmp_path)
    (run.root / "test_images" / "4" / "noted").write_text("")
    table = run.root / "test_series_descriptions.csv"
    table.write_text(table.read_text().replace("5,51,Sagittal T2/STIR", "5,59,Sagittal T2/STIR") + "6,60,Axial T2\n")
    (run.root / "test_images" / "6").mkdir()
    frame, record = run()
    assert sorted(run.read) == [4, 5, 6]
    assert record["studies"][3]["problems"] == ["study 4: 3.dcm left out"]
    assert len(frame) == 150
    run()
    assert run.read == []


def test_another_bundle_predicts_all_again_and_keeps_the_former_journal(done, tmp_path, caplog):
    run = copied(done, tmp_path)
    before = run.journal.read_bytes()
    write_bundle(run.bundle, recipe="other")
    with caplog.at_level(logging.INFO, "lumbar"):
        run()
    assert sorted(run.read) == [1, 2, 3, 4, 5]
    assert "s.csv.journal: found manifest_hash" in caplog.text
    assert "its 5 studies stay in s.csv.journal.old" in caplog.text
    assert (tmp_path / "s.csv.journal.old").read_bytes() == before


def test_without_resume_a_run_begins_anew_and_keeps_the_former_journal(done, tmp_path):
    run = copied(done, tmp_path)
    run(resume=False)
    assert sorted(run.read) == [1, 2, 3, 4, 5]
    assert (tmp_path / "s.csv.journal.old").is_file()


def test_what_time_did_not_allow_is_done_when_the_run_goes_on(run):
    now = [0.0]

    def slow(study, networks, prior, effort):
        now[0] += 40.0
        return FAKE.predict(study, networks, prior, effort)

    _, record = run(chain=replace(FAKE, predict=slow), clock=lambda: now[0], time_limit=100)
    left = [study["study_id"] for study in record["studies"] if "time limit" in "".join(study["problems"])]
    assert 0 < len(left) < 5
    run()
    assert sorted(run.read) == left
    assert [study["study"] for study in records(run.journal) if study.get("final") is False] == left


# ---- refusals: one line, and nothing is lost -------------------------------------------------------------------------


def rewritten(path, **changes):
    """The journal with another header."""
    texts = path.read_bytes().splitlines(keepends=True)
    head, body = (json.loads(part) for part in texts[0].rstrip(b"\n").split(b"\t")[1:])
    path.write_bytes(line(head | changes, body) + b"".join(texts[1:]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"journal": 2}, "found a journal of version 2, expected version 1"),
        ({"shard": [1, 4]}, "found shard 1/4, expected none"),
        ({"split": "train"}, "found split train, expected test"),
        ({"chain": "baseline"}, "found chain baseline, expected another"),
        ({"versions": {"lumbar": "9.9"}}, r"found predictions of lumbar 9\.9, .*expected lumbar 0\.1\.0.*go on with"),
    ],
)  # fmt: skip
def test_a_journal_of_something_else_is_refused_and_stands(done, tmp_path, changes, message):
    run = copied(done, tmp_path)
    rewritten(run.journal, **changes)
    before = {path: path.read_bytes() for path in (run.journal, run.out)}
    with pytest.raises(CohortError, match=message) as caught:
        run()
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in before} == before
    assert run.read == []


def test_a_journal_that_another_process_writes_is_refused(run):
    with pytest.raises(CohortError, match=r"s\.csv\.journal: found it in use by process \d+ on .*, expected one"):
        run(chain=replace(FAKE, load=lambda manifest, device: refused(run)))
    assert not run.out.exists()
    assert not run.journal.exists()  # of the first run too, which ended before it had any study


def refused(run):
    return run(chain=FAKE)


def test_a_journal_left_behind_by_a_killed_process_is_free(done, tmp_path):
    run = copied(done, tmp_path)
    assert records(run.journal)[1]["pid"] == os.getpid()  # which runs: the lock decides, and not the number
    run()
    assert run.read == []


def test_going_on_needs_the_file_to_go_on_from(run):
    with pytest.raises(CohortError, match="resume: found no out, expected the submission"):
        predict(run.root, run.bundle, chain=FAKE, resume=True)


def test_a_journal_in_the_place_of_an_input_is_refused(run):
    out = run.root / "test_images" / "x"
    with pytest.raises(CohortError, match="found a place among the inputs"):
        predict(run.root, run.bundle, out, chain=FAKE)
