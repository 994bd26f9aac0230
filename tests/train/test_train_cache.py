from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest

from lumbar import labels
from lumbar.errors import CohortError
from lumbar.stages.eight_bit import ChosenSlice, eight_bit
from lumbar.study import read_study
from lumbar_train.data.cache import Cache, build_cache
from lumbar_train.data.volumes import CompactVolume, compact
from study_checks import assert_same_study


def series_of(root: Path) -> pd.DataFrame:
    return pd.read_csv(root / "train_series_descriptions.csv")


def build(root: Path, folder: Path, **kwargs) -> Cache:
    return build_cache(folder, root, "train", series_of(root), progress=False, **kwargs)


def run_python(code: str, root: Path, folder: Path) -> subprocess.CompletedProcess:
    """A builder in its own process, spoiled by ``code`` before it starts."""
    body = f"""
import sys
from pathlib import Path
import pandas as pd
import pydicom
from lumbar_train import files
from lumbar_train.data import cache
root, folder = Path({str(root)!r}), Path({str(folder)!r})
{textwrap.dedent(code)}
series = pd.read_csv(root / "train_series_descriptions.csv")
try:
    cache.build_cache(folder, root, "train", series, progress=False)
except files.TrainingError as error:
    print(error)
    sys.exit(1)
"""
    return subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, env=environment(), check=False)


def environment() -> dict[str, str]:
    project = Path(__file__).parents[2]
    return os.environ | {"PYTHONPATH": f"{project / 'kernel'}:{project / 'src'}"}


def whole_cache(root: Path, folder: Path) -> None:
    """The cache gives every study as the kernel reads it, and holds no half-written file that counts."""
    cache = Cache(folder)
    descriptions = series_of(root)
    for study_id in sorted(set(descriptions["study_id"])):
        assert_same_study(cache.study(study_id), read_study(root, "train", study_id, descriptions, workers=1))
    cache.verify(sorted(set(descriptions["study_id"])))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_cached_studies_equal_what_the_kernel_reads(root, tmp_path, workers):
    build(root, tmp_path / "cache", workers=workers)
    whole_cache(root, tmp_path / "cache")


def test_volumes_are_mapped_read_only_and_converted_a_slice_at_a_time(root, tmp_path):
    study = build(root, tmp_path / "cache").study(101)
    volume = study.series[labels.AXIAL_T2][0].volume
    assert isinstance(volume, CompactVolume)
    base = volume.stored
    while not isinstance(base, np.memmap):
        base = base.base
    assert not volume.stored.flags.writeable
    assert volume.stored.dtype == np.uint16
    assert volume[3].dtype == np.float32
    assert volume[3].shape == volume.shape[1:]


def test_problems_and_absent_series_are_kept(root, tmp_path):
    shutil.rmtree(root / "train_images/101/1010")
    (root / "train_images/102/1022/3.dcm").unlink()
    (root / "train_images/102/1022/3.dcm").write_text("no image")
    cache = build(root, tmp_path / "cache")
    assert cache.study(101).series[labels.SAGITTAL_T1] == []
    assert cache.study(102).problems
    whole_cache(root, tmp_path / "cache")


def test_unchanged_studies_are_not_decoded_again_and_changed_ones_are(root, tmp_path, monkeypatch):
    build(root, tmp_path / "cache")
    decoded = []

    def reading(root, split, study_id, descriptions, workers=None):
        decoded.append(study_id)
        return read_study(root, split, study_id, descriptions, workers=workers)

    monkeypatch.setattr("lumbar_train.data.cache.read_study", reading)
    build(root, tmp_path / "cache")
    assert decoded == []
    (root / "train_images/103/1031/2.dcm").unlink()
    build(root, tmp_path / "cache")
    assert decoded == [103]
    whole_cache(root, tmp_path / "cache")


def test_touched_but_equal_files_are_recognised_by_content(root, tmp_path, monkeypatch):
    build(root, tmp_path / "cache")
    path = root / "train_images/104/1040/1.dcm"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    monkeypatch.setattr("lumbar_train.data.cache.read_study", lambda *a, **k: pytest.fail("decoded again"))
    build(root, tmp_path / "cache")


def test_a_cohort_copied_elsewhere_shares_the_objects(root, tmp_path):
    shutil.copytree(root, tmp_path / "copy")
    build(root, tmp_path / "cache")
    before = sorted(p.name for p in (tmp_path / "cache/objects").glob("*/*.bin"))
    build(tmp_path / "copy", tmp_path / "cache")
    assert sorted(p.name for p in (tmp_path / "cache/objects").glob("*/*.bin")) == before


def test_changed_code_does_not_meet_old_volumes(root, tmp_path, monkeypatch):
    build(root, tmp_path / "cache")
    monkeypatch.setattr("lumbar_train.data.study_jobs.code_key", lambda *_roots: "other")
    decoded = []
    monkeypatch.setattr(
        "lumbar_train.data.cache.read_study",
        lambda *a, **k: decoded.append(a[2]) or read_study(*a, **k),
    )
    build(root, tmp_path / "cache")
    assert len(decoded) == 6


def test_unknown_study_is_refused(root, tmp_path):
    with pytest.raises(CohortError, match="study 999 is not cached"):
        build(root, tmp_path / "cache").study(999)


def test_truncated_object_is_refused_then_mended(root, tmp_path):
    build(root, tmp_path / "cache")
    key = json.loads((tmp_path / "cache/index/101.json").read_text())["key"]
    path = tmp_path / "cache/objects" / key[:2] / f"{key}.bin"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CohortError, match="damaged or absent"):
        Cache(tmp_path / "cache").study(101)
    build(root, tmp_path / "cache")
    whole_cache(root, tmp_path / "cache")


def test_flipped_byte_is_found_by_verify(root, tmp_path):
    cache = build(root, tmp_path / "cache")
    key = json.loads((tmp_path / "cache/index/101.json").read_text())["key"]
    path = tmp_path / "cache/objects" / key[:2] / f"{key}.bin"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(CohortError, match="study 101 has sha256"):
        cache.verify([101])


def test_pickled_cache_opens_its_own_maps(root, tmp_path):
    cache = build(root, tmp_path / "cache")
    cache.study(101)
    copy = pickle.loads(pickle.dumps(cache))
    assert len(pickle.dumps(cache)) < 1000
    assert np.array_equal(
        copy.study(101).series[labels.AXIAL_T2][0].volume, cache.study(101).series[labels.AXIAL_T2][0].volume
    )


@pytest.mark.slow
@pytest.mark.parametrize("nth", [1, 5, 8, 12])
def test_kill_in_the_middle_leaves_nothing_corrupted(root, tmp_path, nth):
    code = f"""
        import os, signal
        calls = []
        def dying(descriptor, sync=os.fsync):
            calls.append(1)
            if len(calls) == {nth}:
                os.kill(os.getpid(), signal.SIGKILL)
            sync(descriptor)
        os.fsync = dying
    """
    done = run_python(code, root, tmp_path / "cache")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list((tmp_path / "cache").rglob(".tmp-*"))  # the killed builder's, which nothing reads
    build(root, tmp_path / "cache")
    whole_cache(root, tmp_path / "cache")


@pytest.mark.slow
def test_full_disk_is_one_clear_line_and_the_next_build_goes_on(root, tmp_path):
    code = """
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        build = cache._build
        def limited(job):
            if job.study_id == 104:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            build(job)
        cache._build = limited
    """
    done = run_python(code, root, tmp_path / "cache")
    assert done.returncode == 1, done.stderr
    assert "the disk is full" in done.stdout
    assert "3 of 6 studies are cached, the next build goes on" in done.stdout
    assert len(done.stdout.strip().splitlines()) == 1
    assert not list((tmp_path / "cache").rglob(".tmp-*"))
    build(root, tmp_path / "cache")
    whole_cache(root, tmp_path / "cache")


@pytest.mark.parametrize("n_there", [0, 4, 6])
def test_the_bar_ends_its_line_however_fast_the_build_is(root, tmp_path, capsys, monkeypatch, n_there):
    """Or the next line, such as a refusal, would stand behind it."""
    series = series_of(root)
    there = sorted(set(series["study_id"]))[:n_there]
    build_cache(tmp_path / "cache", root, "train", series[series["study_id"].isin(there)], progress=False)
    # in no time
    monkeypatch.setattr("lumbar_train.data.cache.run_jobs", lambda work, jobs, workers: ((job, None) for job in jobs))
    build_cache(tmp_path / "cache", root, "train", series)
    text = capsys.readouterr().err
    if n_there == 6:
        assert text == ""  # nothing to do, nothing to say
    else:
        assert re.search(rf"\n{6 - n_there} of {6 - n_there} studies done in \S+ s\n$", text)


@pytest.mark.slow
def test_two_builders_at_once_agree(root, tmp_path):
    folder = tmp_path / "cache"
    body = (
        "import sys, pandas as pd; from pathlib import Path; from lumbar_train.data.cache import build_cache; "
        "root = Path(sys.argv[1]); "
        "build_cache(sys.argv[2], root, 'train', pd.read_csv(root / 'train_series_descriptions.csv'), progress=False)"
    )
    command = [sys.executable, "-c", body, str(root), str(folder)]
    with ExitStack() as stack:
        builders = []
        for _ in range(3):
            builders.append(stack.enter_context(subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE)))
            stack.callback(builders[-1].kill)
        errors = [builder.communicate(timeout=1500)[1] for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0, 0], errors
    whole_cache(root, folder)
    assert not list(folder.rglob(".tmp-*"))
    assert len(list((folder / "objects").glob("*/*.bin"))) == 6


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 255], np.uint8),
        ([0, 4095], np.uint16),
        ([-1024, 3000], np.int16),
        ([-40000, 40000], np.float32),
        ([0.5, 1], np.float32),
        ([np.nan, 1], np.float32),
    ],
)
def test_volumes_take_the_smallest_type_that_loses_nothing(values, dtype):
    volume = np.array(values, dtype=np.float32).reshape(1, 1, 2)
    stored = compact(volume)
    assert stored.dtype == dtype
    assert np.array_equal(stored.astype(np.float32), volume, equal_nan=True)
    view = CompactVolume(stored)
    assert np.array_equal(view, volume, equal_nan=True)
    assert view.min() == volume.min() or np.isnan(volume).any()


def test_padding_and_frames_are_kept(root, tmp_path):
    folder = root / "train_images/101/1010"
    for path in sorted(folder.glob("*.dcm")):
        data = pydicom.dcmread(path)
        pixels = data.pixel_array.copy()
        pixels[:9] = 65535
        data.add_new(0x00280120, "US", 65535)
        data.BitsStored, data.HighBit, data.PixelData = 16, 15, pixels.tobytes()
        path.unlink()  # a link to the other tests' file
        pydicom.dcmwrite(path, data)
    study = build(root, tmp_path / "cache").study(101)
    stack = next(s for stacks in study.series.values() for s in stacks if s.series_id == "1010")
    assert study.window("1010")[1] < 60000
    assert np.all(study.normalised(stack, 0)[:9] == 0)
    pixels = eight_bit(study, ChosenSlice(stack, 0), 32)
    assert pixels.max() > 128
    whole_cache(root, tmp_path / "cache")
