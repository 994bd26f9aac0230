"""A cohort made in parts has the same bytes as one made in one go; what does not fit is refused in one line."""

import hashlib
import shutil
import sys
from pathlib import Path

import pytest

from lumbar.errors import CohortError
from lumbar.workers.shards import Shard
from lumbar_phantom import _jit, cohort, study, volume
from lumbar_phantom.__main__ import main
from lumbar_phantom.cohort import make_cohort, merge_cohort
from phantom_helpers import BlankPainter


@pytest.fixture(autouse=True)
def unpainted(monkeypatch):
    """Everything but the anatomy's volume and its pixels."""
    monkeypatch.setattr(study, "Painter", BlankPainter)
    monkeypatch.setattr(volume, "build", lambda patient, rng: None)


@pytest.fixture
def made(monkeypatch):
    """The indices that were made, in their order."""
    indices, real = [], study.write_study

    def write(request):
        indices.append(request.index)
        return real(request)

    monkeypatch.setattr(cohort, "write_study", write)
    return indices


def digest(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def make(root, studies=4, **options):
    return make_cohort(root, studies, 5, progress=False, **options)


def test_parts_and_ranges_have_the_bytes_of_one_go(tmp_path, made):
    make(tmp_path / "one")
    expected = digest(tmp_path / "one")
    made.clear()
    for index in (2, 0, 1):
        make(tmp_path / "parts", shard=Shard(index, 3))
        assert not (tmp_path / "parts" / "train.csv").exists()
    assert sorted(made) == [0, 1, 2, 3]
    merge_cohort(tmp_path / "parts")
    assert digest(tmp_path / "parts") == expected
    for first in (3, 0):
        make(tmp_path / "ranges", studies=3 if first == 0 else 1, first=first)
    merge_cohort(tmp_path / "ranges")
    assert digest(tmp_path / "ranges") == expected


def test_a_part_that_was_killed_goes_on_and_repeats_nothing(tmp_path, made, monkeypatch):
    real = cohort.write_study

    def killed(request):
        if request.index == 2:
            raise KeyboardInterrupt
        return real(request)

    monkeypatch.setattr(cohort, "write_study", killed)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path)
    monkeypatch.setattr(cohort, "write_study", real)
    assert made == [0, 1]
    journal = tmp_path / "parts" / "train.journal"
    journal.write_bytes(journal.read_bytes()[:-7])  # the last record is cut: its study is made again
    done = make(tmp_path, resume=True)
    assert made == [0, 1, 1, 2, 3]
    assert len(done) == 4
    assert (tmp_path / "train.csv").exists()
    assert not (tmp_path / "parts").exists()


def test_what_does_not_fit_is_refused_and_the_parts_stand(tmp_path):
    with pytest.raises(CohortError, match=r"parts: found no part of the split train, expected one journal a part"):
        merge_cohort(tmp_path)
    make(tmp_path, studies=2, first=0)
    with pytest.raises(CohortError, match=r"found pitfalls \['real'\], expected \['none'\]; go on with the same"):
        make(tmp_path, studies=2, first=0, resume=True, pitfalls=("none",))
    make(tmp_path, studies=1, first=3)
    with pytest.raises(CohortError, match=r"found 3 studies of 4, expected all: missing index 2; run the parts again"):
        merge_cohort(tmp_path)
    make(tmp_path, studies=3, first=1)
    with pytest.raises(CohortError, match=r"train\.1-to-3\.journal: found study 1, which train\.0-to-1\.journal has"):
        merge_cohort(tmp_path)
    assert not (tmp_path / "train.csv").exists()
    assert len(list((tmp_path / "parts").iterdir())) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--merge", "--studies", "2"), "--merge takes --out and --split alone"),
        ((), "required: --studies"),
        (("--studies", "2", "--first", "-1"), "--first must be at least 0"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(tmp_path, words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--out", str(tmp_path), *words])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_the_command_makes_parts_and_joins_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    words = ["--out", str(tmp_path), "--studies", "3", "--seed", "5"]
    assert main([*words, "--shard", "auto/2", "--resume"]) == 0
    assert "of this part; --merge writes the tables of all parts" in capsys.readouterr().out
    assert main([*words[:2], "--merge"]) == 1
    assert "; part 0-of-2 was not begun" in capsys.readouterr().err
    assert main([*words, "--shard", "0/2"]) == 0
    assert main([*words[:2], "--merge"]) == 0
    assert "spinal: Normal/Mild" in capsys.readouterr().out
    assert main([*words, "--shard", "2/2"]) == 1
    assert "shard '2/2': found part 2 of 2, expected 0 to 1" in capsys.readouterr().err


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
    assert line.endswith("; use another --out, or --overwrite to remove its studies and tables first\n")
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


def test_another_cohort_over_one_that_is_not_finished_is_refused(tmp_path, made, monkeypatch, capsys):
    real = cohort.write_study

    def killed(request):
        if request.index == 1:
            raise KeyboardInterrupt
        return real(request)

    monkeypatch.setattr(cohort, "write_study", killed)
    words = ["--out", str(tmp_path), "--studies", "2", "--seed"]
    assert main([*words, "5"]) == 1
    monkeypatch.setattr(cohort, "write_study", real)
    assert main([*words, "6"]) == 1
    assert "found the unfinished cohort of the split train with seed 5, expected seed 6" in capsys.readouterr().err
    assert main([*words, "6", "--overwrite"]) == 0
    assert len(list((tmp_path / "train_images").iterdir())) == 2, "nothing of the other cohort is left"


def test_tables_are_not_replaced_by_those_of_fewer_parts(tmp_path, capsys):
    words = ["--out", str(tmp_path), "--studies", "2", "--seed", "5"]
    assert main(words) == 0
    before = digest(tmp_path)
    assert main([*words[:2], "--studies", "1", "--seed", "5", "--first", "1"]) == 0
    assert main([*words[:2], "--merge"]) == 1
    assert "found tables of the split train with 1 study that no part has" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "parts")
    assert digest(tmp_path) == before


def test_a_command_that_makes_nothing_leaves_no_folder(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "new" / "data"), "--studies", "1", "--pitfalls", "no_such"]) == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("is_kept", [True, False])
def test_one_line_says_that_kernels_are_compiled_where_none_are_kept(tmp_path, monkeypatch, capsys, is_kept):
    monkeypatch.delenv("NUMBA_DISABLE_JIT", raising=False)
    monkeypatch.setattr(_jit, "_FOLDER", str(tmp_path / "cache"))
    if is_kept:
        digits = hashlib.sha1(str(_jit._HERE).encode()).hexdigest()
        kept = tmp_path / "cache" / f"lumbar_phantom_{digits}"
        kept.mkdir(parents=True)
        (kept / f"painting.paint-12.py{sys.version_info.major}{sys.version_info.minor}.nbi").touch()
    assert main(["--out", str(tmp_path / "data"), "--studies", "1"]) == 0
    line = "compiling what draws the phantoms: once on this machine, some minutes\n"
    assert capsys.readouterr().err.startswith(line) is not is_kept
