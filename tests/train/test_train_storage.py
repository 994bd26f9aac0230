"""Where decoded slices go: a cache that fits the disk, a read-only one, or none; and weights, which are kept once."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from lumbar.errors import CohortError
from lumbar.study import read_study
from lumbar_train.__main__ import main
from lumbar_train.data import cache
from lumbar_train.data.cache import Cache, build_cache
from lumbar_train.data.tables import read_cohort
from lumbar_train.errors import TrainingError
from lumbar_train.pipeline import storage
from lumbar_train.pipeline.counts import count_cohort
from lumbar_train.pipeline.options import NO_CACHE, TrainOptions
from lumbar_train.pipeline.storage import cache_line, choose_storage
from study_checks import assert_same_study


def build(root: Path, folder: Path, **more) -> Cache:
    return build_cache(folder, root, "train", series_of(root), progress=False, **more)


def series_of(root: Path) -> pd.DataFrame:
    return pd.read_csv(root / "train_series_descriptions.csv")


def state_of(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [folder, *folder.rglob("*")]}


@pytest.fixture
def read_only(monkeypatch):
    """Makes a folder one that cannot be written, as a mount of the system does, whoever asks."""

    def protect(folder: Path) -> None:
        real = os.access
        below = str(folder)
        monkeypatch.setattr(
            cache.os,
            "access",
            lambda path, mode: not (mode & os.W_OK and str(path).startswith(below)) and real(path, mode),
        )

    return protect


# A cache that cannot be written


def test_a_read_only_cache_is_recognised_by_content_and_nothing_is_written_there(
    root, tmp_path, read_only, monkeypatch
):
    build(root, tmp_path / "cache")
    shutil.copytree(root, tmp_path / "elsewhere", copy_function=shutil.copyfile)  # other times, other paths
    read_only(tmp_path / "cache")
    before = state_of(tmp_path / "cache")
    notes = tmp_path / "run/cache-index"
    studies = build(tmp_path / "elsewhere", tmp_path / "cache", notes=notes)
    assert state_of(tmp_path / "cache") == before
    for study_id in (101, 106):
        read = read_study(tmp_path / "elsewhere", "train", study_id, series_of(root), workers=1)
        assert_same_study(studies.study(study_id), read)
        assert studies.digest(study_id) == Cache(tmp_path / "cache").digest(study_id)
    monkeypatch.setattr(cache, "content_key", lambda job: pytest.fail("read again"))
    build(tmp_path / "elsewhere", tmp_path / "cache", notes=notes)  # what was recognised is noted beside
    assert state_of(tmp_path / "cache") == before


def test_a_read_only_cache_of_the_same_times_is_not_read_at_all(root, tmp_path, read_only, monkeypatch):
    build(root, tmp_path / "cache")
    read_only(tmp_path / "cache")
    monkeypatch.setattr(cache, "content_key", lambda job: pytest.fail("read"))
    assert 101 in build(root, tmp_path / "cache", notes=tmp_path / "notes")


def test_what_a_read_only_cache_lacks_is_one_line(root, tmp_path, read_only):
    build(root, tmp_path / "cache")
    (root / "train_images/103/1031/2.dcm").unlink()
    read_only(tmp_path / "cache")
    before = state_of(tmp_path / "cache")
    with pytest.raises(CohortError, match=r"found 5 of 6 studies \(not 103, for one\).*use another --cache, or none"):
        build(root, tmp_path / "cache", notes=tmp_path / "notes")
    assert state_of(tmp_path / "cache") == before


def test_notes_of_another_content_do_not_count(root, tmp_path, read_only):
    build(root, tmp_path / "cache")
    read_only(tmp_path / "cache")
    build(root, tmp_path / "cache", notes=tmp_path / "notes")
    path = root / "train_images/103/1031/2.dcm"
    content = path.read_bytes()
    path.unlink()  # a link to the other tests' file
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CohortError, match="found 5 of 6 studies"):
        build(root, tmp_path / "cache", notes=tmp_path / "notes")


# Cache or none


@pytest.fixture
def options(tiny_cohort, tmp_path) -> TrainOptions:
    return TrainOptions(data=tiny_cohort, out=tmp_path / "run", recipe="tiny", device="cpu")


@pytest.fixture(scope="module")
def counted(tiny_cohort):
    cohort = read_cohort(tiny_cohort, check_images=False)
    return cohort, count_cohort(cohort)


def with_free(monkeypatch, n_bytes: float) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: usage(1 << 60, 0, n_bytes))


def test_the_size_of_a_cache_is_known_before_it_is_made(counted, tiny_cohort, tmp_path):
    cohort, counts = counted
    build_cache(tmp_path / "cache", tiny_cohort, "train", cohort.series, progress=False)
    assert counts.cache_bytes == sum(path.stat().st_size for path in tmp_path.rglob("*.bin"))


def test_without_a_word_a_cache_is_made_where_it_fits_the_disk_beside_the_run(counted, options, monkeypatch):
    cohort, counts = counted
    with_free(monkeypatch, 2 * counts.cache_bytes)
    assert choose_storage(options, cohort).cache == options.out / "cache"
    assert cache_line(options, *counted) == "cache 500 KiB (decoded slices)"
    with_free(monkeypatch, 1.5 * counts.cache_bytes)
    chosen = choose_storage(options, cohort)
    assert chosen.cache is None
    assert chosen.why == (
        f"about 500 KiB of decoded slices, and 750 KiB are free in {options.out}; slices are decoded when asked for "
        "(--cache DIR keeps them elsewhere)"
    )
    assert cache_line(options, *counted) == f"index 11 KiB; no cache: {chosen.why}"


def test_what_is_cached_already_needs_no_more_room(counted, options, monkeypatch):
    cohort, counts = counted
    series = cohort.series
    build_cache(options.out / "cache", options.data, "train", series[series["study_id"] < 207], progress=False)
    with_free(monkeypatch, 0.6 * counts.cache_bytes)
    assert choose_storage(options, cohort).cache == options.out / "cache"
    with_free(monkeypatch, 0)
    assert choose_storage(options, cohort).cache is None
    build_cache(options.out / "cache", options.data, "train", series, progress=False)
    assert choose_storage(options, cohort).cache == options.out / "cache"


def test_a_cache_that_was_asked_for_is_made_or_refused(counted, options, monkeypatch, read_only, tmp_path):
    cohort, counts = counted
    asked = replace(options, cache=tmp_path / "cache")
    with_free(monkeypatch, 0.9 * counts.cache_bytes)  # the size is an estimate
    assert choose_storage(asked, cohort) == storage.Storage(tmp_path / "cache")
    with_free(monkeypatch, 0.5 * counts.cache_bytes)
    with pytest.raises(
        TrainingError, match=r"--cache .*: about 500 KiB .* 250 KiB are free .*; --cache none takes none"
    ):
        choose_storage(asked, cohort)
    build_cache(asked.cache, asked.data, "train", cohort.series[:3], progress=False)
    read_only(tmp_path / "cache")
    assert choose_storage(asked, cohort).cache == tmp_path / "cache"


def test_a_run_that_began_without_a_cache_goes_on_without(counted, options):
    (options.out / "index").mkdir(parents=True)
    chosen = choose_storage(options, counted[0])
    assert chosen == storage.Storage(None, "as before in this run, slices are decoded when asked for")


@pytest.mark.parametrize("word", ["none", "None", Path("NONE")])
def test_none_is_no_folder(tmp_path, word):
    assert TrainOptions.of(data="d", out="o", cache=word).cache == NO_CACHE
    assert TrainOptions.of(data="d", out="o", cache=tmp_path / "none").cache == tmp_path / "none"
    assert TrainOptions.of(data="d", out="o").cache is None


def test_a_file_as_a_cache_is_one_line(tiny_cohort, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    command = ["train", "--data", str(tiny_cohort), "--out", str(tmp_path / "run"), "--cache", str(tmp_path / "file")]
    assert main(command) == 1
    assert (
        capsys.readouterr().err == f"lumbar_train: --cache {tmp_path}/file: found a file, expected a folder, or none\n"
    )


def test_processes_that_read_are_counted(options, monkeypatch):
    monkeypatch.setattr("lumbar_train.pipeline.options.cores", lambda: 12)
    assert options.n_processes("cpu") == 1
    assert replace(options, jobs=3).n_processes("cuda") == 3 * (1 + 3)
    assert replace(options, jobs=2, loaders=5).n_processes("cuda") == 2 * (1 + 5)
