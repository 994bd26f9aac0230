"""What lies in a folder already is not written over: a cohort that stands, one begun, its parts, a table of others."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from lumbar.io.checked_lines import CheckedLines
from lumbar_phantom import cohort, earlier, study, volume
from lumbar_phantom.__main__ import main
from lumbar_phantom.parts import PartJournal, Plan
from lumbar_phantom.study import Request, study_number
from phantom_helpers import BlankPainter, digest

pytestmark = pytest.mark.usefixtures("unpainted")


@pytest.fixture(scope="module")
def both_splits(tmp_path_factory):
    """A train cohort of two studies and a test study beside it; to be copied."""
    root = tmp_path_factory.mktemp("both") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "Painter", BlankPainter)
        patch.setattr(volume, "build", lambda patient, rng: None)
        assert main(["--out", str(root), "--studies", "2", "--seed", "5"]) == 0
        assert main(["--out", str(root), "--studies", "1", "--seed", "6", "--split", "test"]) == 0
    return root


@pytest.fixture
def words(both_splits, tmp_path):
    """The command that made the train cohort of a folder that is this test's own."""
    shutil.copytree(both_splits, tmp_path / "data")
    return ["--out", str(tmp_path / "data"), "--studies", "2", "--seed", "5"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--studies", "1"), "with 2 studies, expected 1 study or no such cohort"),
        (("--studies", "3", "--resume"), "with 2 studies, expected 3 studies or"),
        (("--seed", "7"), "with seed 5, expected seed 7 or"),
        (("--seed", "7", "--split", "test", "--studies", "1"), "of the split test with seed 6, expected seed 7 or"),
        (("--pitfalls", "none"), "with pitfalls ['real'], expected pitfalls ['none'] or"),
        (("--syntax", "explicit"), "with syntax rle, expected syntax explicit or"),
        (("--first", "2"), "with other studies, expected those of seed 5 with index 2 to 3 or"),
        (("--seed", "7", "--shard", "0/2"), "with seed 5, expected seed 7 or"),
    ],
)
def test_another_cohort_over_one_that_stands_is_refused_in_one_line(words, more, message, capsys):
    root = Path(words[1])
    before = digest(root)
    capsys.readouterr()
    assert main([*words, *more]) == 1
    line = capsys.readouterr().err
    assert line.startswith(f"error: {root}: found the cohort of the split ")
    assert message in line
    is_part = "--first" in more or "--shard" in more  # --overwrite is not for those
    advice = "empty that folder" if is_part else "--overwrite to remove its studies and tables"
    assert line.endswith(f"; use another --out, or {advice} first\n")
    assert line.count("\n") == 1
    assert digest(root) == before


def test_the_same_cohort_again_gives_the_same_bytes_and_parts_of_it_too(words):
    before = digest(Path(words[1]))
    assert main(words) == 0
    assert main([*words, "--resume"]) == 0
    for index in (0, 1):
        assert main([*words, "--shard", f"{index}/2"]) == 0
    assert main([*words[:2], "--merge"]) == 0
    assert digest(Path(words[1])) == before


def test_a_cohort_without_its_record_is_told_by_its_studies(words, capsys):
    (Path(words[1]) / "train_cohort.json").unlink()
    assert main([*words[:-1], "7"]) == 1
    assert "with other studies, expected those of seed 7 with index 0 to 1 or no such" in capsys.readouterr().err
    assert main(words) == 0


def test_overwrite_removes_what_the_tables_list_and_keeps_the_rest(words, tmp_path):
    root = Path(words[1])
    (root / "notes.txt").write_text("mine")
    (root / "train_images" / "77").mkdir()
    assert main([*words[:-1], "7", "--overwrite"]) == 0
    assert (root / "notes.txt").exists()
    assert (root / "train_images" / "77").exists(), "no table lists it"
    (root / "notes.txt").unlink()
    shutil.rmtree(root / "train_images" / "77")
    fresh = [*words[:-1], "7"]
    fresh[1] = str(tmp_path / "fresh")
    assert main(fresh) == 0
    assert main([*fresh[:2], "--studies", "1", "--seed", "6", "--split", "test"]) == 0
    assert digest(root) == digest(tmp_path / "fresh")


def test_overwrite_never_removes_studies_that_are_no_phantoms(tmp_path, capsys):
    real = tmp_path / "train_images" / "4003253" / "702807833"
    real.mkdir(parents=True)
    (real / "1.dcm").write_bytes(b"")
    table = tmp_path / "train_series_descriptions.csv"
    table.write_text("study_id,series_id,series_description\n4003253,702807833,Sagittal T1\n")
    for more, message in (((), "or --overwrite"), (("--overwrite",), "found 1 study that truth.parquet does not list")):
        assert main(["--out", str(tmp_path), "--studies", "1", *more]) == 1
        assert message in capsys.readouterr().err
    assert (real / "1.dcm").exists()
    assert table.exists()


def kill_at(index, monkeypatch):
    """Making this study is interrupted; returns what ends that."""
    real = cohort.write_study

    def killed(request):
        if request.index == index:
            raise KeyboardInterrupt
        return real(request)

    monkeypatch.setattr(cohort, "write_study", killed)
    return lambda: monkeypatch.setattr(cohort, "write_study", real)


def command(root, studies, seed, *more):
    return ["--out", str(root), "--studies", str(studies), "--seed", str(seed), *more]


def images(root):
    return len(list((root / "train_images").iterdir()))


def test_another_cohort_over_one_that_is_not_finished_is_refused(tmp_path, monkeypatch, capsys):
    live = kill_at(1, monkeypatch)
    assert main(command(tmp_path, 2, 5)) == 1
    live()
    for words in (command(tmp_path, 2, 6), command(tmp_path, 2, 6, "--shard", "0/2", "--resume")):
        assert main(words) == 1
        assert "found the unfinished cohort of the split train with seed 5, expected seed 6" in capsys.readouterr().err
    assert main(command(tmp_path, 2, 6, "--resume")) == 1
    advice = "go on with the same options, or use another --out, or --overwrite to begin anew"
    assert f"train.journal: found seed 5, expected 6; {advice}" in capsys.readouterr().err
    assert main(command(tmp_path, 2, 6, "--overwrite", "--resume")) == 0
    assert images(tmp_path) == 2, "nothing of the other cohort is left"


def test_a_study_that_was_begun_is_known_though_none_is_finished(tmp_path, monkeypatch, capsys):
    live = kill_at(0, monkeypatch)
    (tmp_path / "train_images" / str(study_number(5, 0))).mkdir(parents=True)  # another worker was at it
    assert main(command(tmp_path, 2, 5)) == 1
    live()
    assert main(command(tmp_path, 2, 6)) == 1
    assert "found the unfinished cohort of the split train with seed 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((3, 6, "--shard", "1/2"), "with seed 5, expected seed 6 or no such cohort; use another --out, or empty"),
        ((3, 6, "--shard", "0/2", "--resume"), "with seed 5, expected seed 6 or no such cohort"),
        ((3, 5, "--shard", "1/2", "--syntax", "explicit"), "with syntax rle, expected syntax explicit"),
        ((9, 5, "--shard", "1/2"), "expected 3 studies or no such cohort"),
        ((1, 6, "--first", "0"), "with seed 5, expected seed 6"),
        ((3, 6), "with seed 5, expected seed 6 or no such cohort; use another --out, or --overwrite to remove"),
        ((3, 5, "--pitfalls", "none"), "with pitfalls ['real'], expected pitfalls ['none']"),
        ((1, 5), "expected 1 study or no such cohort"),
    ],
)
def test_another_cohort_over_parts_of_one_is_refused_and_the_parts_stand(part, words, message, capsys):
    before = digest(part)
    assert main(command(part, *words)) == 1
    line = capsys.readouterr().err
    assert line.startswith(f"error: {part}: found the unfinished cohort of the split train with ")
    assert message in line
    assert digest(part) == before


@pytest.fixture(scope="module")
def one_part(tmp_path_factory):
    """Part 1 of 2 of a cohort of three studies; to be copied."""
    root = tmp_path_factory.mktemp("part") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "Painter", BlankPainter)
        patch.setattr(volume, "build", lambda patient, rng: None)
        assert main(command(root, 3, 5, "--shard", "1/2")) == 0
    assert images(root) == 2
    return root


@pytest.fixture
def part(one_part, tmp_path):
    return shutil.copytree(one_part, tmp_path / "data")


def test_overwrite_removes_parts_with_their_journals_but_none_that_is_being_made(part, capsys):
    before = digest(part)
    lines = CheckedLines(part / "parts" / "train.1-of-2.journal")
    assert main(command(part, 1, 6, "--overwrite")) == 1
    assert "train.1-of-2.journal: found it in use" in capsys.readouterr().err
    lines.close()
    assert digest(part) == before
    assert main(command(part, 1, 6, "--overwrite")) == 0
    assert images(part) == 1
    assert not (part / "parts").exists()


def test_a_whole_cohort_of_the_same_settings_takes_the_place_of_its_parts(part):
    assert main(command(part, 3, 5)) == 0
    assert images(part) == 3


def test_parts_of_other_settings_than_the_tables_are_not_joined(part, tmp_path, capsys):
    (part / "parts").rename(tmp_path / "parts")
    assert main(command(part, 2, 5, "--pitfalls", "none")) == 0
    before = digest(part)
    (tmp_path / "parts").rename(part / "parts")
    words = ["--out", str(part), "--merge"]
    (part / "parts" / "train.1-of-2.journal").rename(part / "parts" / "train.journal")
    assert main(command(part, 3, 5, "--first", "0")) == 1, "as the tables tell"
    assert "with pitfalls ['none'], expected pitfalls ['real']" in capsys.readouterr().err
    plan = Plan([Request(str(part), "train", 5, index) for index in range(2)], first=0)
    journal = PartJournal(plan, resume=False)
    for request in plan.requests:
        journal.add(request.index, study.write_study(replace(request, root=str(tmp_path / "other"))))
    journal.close()
    assert main(words) == 1
    assert "of a cohort with pitfalls ['none'], expected pitfalls ['real'] as the parts have" in capsys.readouterr().err
    shutil.rmtree(part / "parts")
    assert digest(part) == before


def test_an_interrupted_merge_is_simply_to_be_run_again(part, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cohort, "merge_parts", interrupted)
    assert main(["--out", str(part), "--merge"]) == 1
    line = capsys.readouterr().err
    assert line == f"error: interrupted: {part} has not all tables of the parts; run the same command again to go on\n"


def test_overwrite_that_is_refused_leaves_an_unfinished_cohort_as_it_was(words, monkeypatch, capsys):
    root = Path(words[1])
    live = kill_at(1, monkeypatch)
    assert main(words) == 1  # the same cohort once more
    live()
    (root / "truth.parquet").write_bytes(b"PAR1 and nothing else")
    (root / "test_images").rename(root / "other")
    before = digest(root)
    assert main([*words, "--seed", "7", "--overwrite"]) == 1
    assert "truth.parquet: found a damaged file, expected a table with the column study_id" in capsys.readouterr().err
    assert digest(root) == before
    assert main([*words, "--resume"]) == 0, "it can be finished"


@pytest.mark.parametrize("name", ["truth.parquet", "truth_contrasts.csv"])
def test_a_damaged_table_of_the_truth_is_refused_before_anything_is_removed_or_written(words, name, capsys):
    root = Path(words[1])
    for content in (b"", b"nothing\n", b"study_id\nx\n"):
        (root / name).write_bytes(content)
        before = digest(root)
        for more in (("--seed", "7", "--overwrite"), ()):
            assert main([*words, *more]) == 1
            assert f"{root / name}: found a damaged file, expected a table with" in capsys.readouterr().err
            assert digest(root) == before


@pytest.mark.parametrize("stop", [2, 5, 6])
def test_a_removal_that_was_interrupted_goes_on(words, monkeypatch, stop):
    """After the images of one study, after the tables of the truth, before the table of series."""
    root, steps = Path(words[1]), []

    def step(real):
        def call(*arguments, **options):
            steps.append(real)
            if len(steps) == stop + 1:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(earlier, "shutil", SimpleNamespace(rmtree=step(shutil.rmtree)))
        patch.setattr(earlier, "write_atomically", step(earlier.write_atomically))
        patch.setattr(earlier, "atomic_file", step(earlier.atomic_file))
        patch.setattr(earlier, "_own_tables", step(earlier._own_tables))
        patch.setattr(earlier, "_table", step(earlier._table))
        assert main([*words, "--seed", "7", "--overwrite"]) == 1
    assert (root / "train_series_descriptions.csv").exists()
    assert (root / "train.csv").exists() is (stop < 6)
    assert images(root) == (1 if stop == 2 else 0)
    assert main([*words, "--seed", "7", "--overwrite"]) == 0
    assert images(root) == 2
    assert len(pd.read_parquet(root / "truth.parquet").study_id.unique()) == 3


@pytest.mark.parametrize("name", ["train.csv", "train_label_coordinates.csv", "sample_submission.csv"])
@pytest.mark.parametrize("more", [(), ("--shard", "0/2")])
def test_tables_that_no_cohort_of_phantoms_has_are_not_written_over(tmp_path, name, more, capsys):
    (tmp_path / name).write_text("study_id\n4003253\n")
    for extra in ((), ("--overwrite",) if not more else ("--resume",)):
        assert main(command(tmp_path, 1, 5, *more, *extra)) == 1
        line = f"error: {tmp_path / name}: found a table that no cohort of phantoms has, expected another --out\n"
        assert capsys.readouterr().err == line
    assert (tmp_path / name).read_text() == "study_id\n4003253\n"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_tables_are_not_replaced_by_those_of_fewer_parts(tmp_path, capsys):
    words = ["--out", str(tmp_path), "--studies", "2", "--seed", "5"]
    assert main(words) == 0
    before = digest(tmp_path)
    assert main([*words[:2], "--studies", "1", "--seed", "5", "--first", "1"]) == 0
    assert main([*words[:2], "--merge"]) == 1
    assert "found tables of the split train with 1 study that no part has" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "parts")
    assert digest(tmp_path) == before
