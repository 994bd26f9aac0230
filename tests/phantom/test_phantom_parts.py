"""A cohort made in parts has the same bytes as one made in one go; what does not fit is refused in one line."""

import sys

import pytest
from numba.core.caching import _CacheLocator

from lumbar.errors import CohortError
from lumbar.workers.shards import Shard
from lumbar_phantom import _jit, cohort, painting, parts, study
from lumbar_phantom.__main__ import main
from lumbar_phantom.cohort import make_cohort, merge_cohort
from phantom_helpers import digest

pytestmark = pytest.mark.usefixtures("unpainted")


@pytest.fixture
def made(monkeypatch):
    """The indices that were made, in their order."""
    indices, real = [], study.write_study

    def write(request):
        indices.append(request.index)
        return real(request)

    monkeypatch.setattr(cohort, "write_study", write)
    return indices


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


def test_parts_of_different_versions_are_not_joined_and_can_be_made_again(tmp_path, monkeypatch):
    make(tmp_path, studies=1, first=0)
    with monkeypatch.context() as patch:
        patch.setattr(parts, "__version__", "0.1")
        make(tmp_path, studies=1, first=1)
    advice = r"as train\.0-to-0\.journal has; make one of them again with the other's options$"
    with pytest.raises(CohortError, match=rf"found version 0\.1, expected \S+ {advice}"):
        merge_cohort(tmp_path)
    with pytest.raises(CohortError, match=r"found version 0\.1, expected .*, or begin anew without --resume$"):
        make(tmp_path, studies=1, first=1, resume=True)
    make(tmp_path, studies=1, first=1)
    assert len(merge_cohort(tmp_path)) == 2


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


def test_a_command_that_makes_nothing_leaves_no_folder(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "new" / "data"), "--studies", "1", "--pitfalls", "no_such"]) == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("is_kept", [True, False])
def test_one_line_says_that_kernels_are_compiled_where_none_are_kept(tmp_path, monkeypatch, capsys, is_kept):
    monkeypatch.delenv("NUMBA_DISABLE_JIT", raising=False)
    monkeypatch.setattr(_jit, "_FOLDER", str(tmp_path / "cache"))
    if is_kept:  # where numba itself would keep them
        kept = tmp_path / "cache" / _CacheLocator.get_suitable_cache_subpath(painting.__file__)
        kept.mkdir(parents=True)
        (kept / f"painting.paint-12.py{sys.version_info.major}{sys.version_info.minor}.nbi").touch()
    assert main(["--out", str(tmp_path / "data"), "--studies", "1"]) == 0
    line = "compiling what draws the phantoms: once on this machine, some minutes\n"
    assert capsys.readouterr().err.startswith(line) is not is_kept
