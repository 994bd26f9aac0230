"""``--cache none``: studies straight from the DICOM folder, the same bits as through a cache."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest

from frames_writer import write_frames
from lumbar import labels
from lumbar.errors import CohortError
from lumbar.study import read_study
from lumbar_train.data import dicom_folder, slice_memory
from lumbar_train.data.cache import build_cache
from lumbar_train.data.dicom_folder import DicomFolder, index_studies
from lumbar_train.data.slice_memory import LEAST, SliceMemory, memory_for_slices
from lumbar_train.errors import TrainingError
from study_checks import assert_same_study

SLICE_BYTES = 4 * 32 * 32


def series_of(root: Path) -> pd.DataFrame:
    return pd.read_csv(root / "train_series_descriptions.csv")


def studies_in(root: Path, index: Path, memory: int = 1 << 20) -> DicomFolder:
    index_studies(index, root, "train", series_of(root), progress=False)
    return DicomFolder(index, root, "train", memory)


def assert_whole(root: Path, studies: DicomFolder) -> None:
    table = series_of(root)
    for study_id in sorted(set(table["study_id"])):
        assert_same_study(studies.study(study_id), read_study(root, "train", study_id, table, workers=1))


def make_odd(root: Path) -> None:
    """What real folders hold: an absent series, damage, odd names, copies, padding, frames, fractions, signs."""
    images = root / "train_images"
    shutil.rmtree(images / "101/1010")
    (images / "102/1022/3.dcm").unlink()
    (images / "102/1022/3.dcm").write_text("no image")
    (images / "102/1020/2.dcm").rename(images / "102/1020/second.dcm")
    shutil.copy(images / "102/1020/4.dcm", images / "102/1020/copy.DCM")
    for path, changes in (
        ("103/1030/1.dcm", {"RescaleSlope": 0.1, "RescaleIntercept": -3}),
        ("103/1031/1.dcm", {"RescaleSlope": -1, "RescaleIntercept": 0}),  # 0 becomes -0.0, as which it is not kept
        ("103/1032/1.dcm", {"PhotometricInterpretation": "MONOCHROME1"}),
    ):
        for file in sorted((images / path).parent.glob("*.dcm")):
            data = pydicom.dcmread(file)
            for name, value in changes.items():
                setattr(data, name, value)
            if "PhotometricInterpretation" in changes:
                data.add_new(0x00280120, "US", 0)  # PixelPaddingValue
            data.PixelData = (data.pixel_array * (np.arange(32) > 5)).astype("<u2").tobytes()
            file.unlink()  # a link to the other tests' file
            pydicom.dcmwrite(file, data)
    shutil.rmtree(images / "104/1041")
    frames = np.random.default_rng(1).integers(0, 4000, (5, 30, 20)).astype(np.uint16)
    write_frames(images / "104/1041/1.dcm", frames, [(x, -50, 60) for x in (8, 0, 4, 16, 12)], is_rle=True)


def test_studies_equal_what_the_kernel_reads_and_what_a_cache_holds(root, tmp_path):
    make_odd(root)
    studies = studies_in(root, tmp_path / "index", memory=0)
    assert_whole(root, studies)
    cache = build_cache(tmp_path / "cache", root, "train", series_of(root), progress=False)
    for study_id in (101, 102, 103, 104):
        assert study_id in studies
        assert studies.digest(study_id) == cache.digest(study_id)
        own, cached = studies.study(study_id), cache.study(study_id)
        for name, stacks in cached.series.items():
            for a, b in zip(own.series[name], stacks, strict=True):
                assert np.asarray(a.volume).tobytes() == np.asarray(b.volume).tobytes()
                assert a.volume[0].tobytes() == np.asarray(b.volume[0]).tobytes()
    assert 999 not in studies
    with pytest.raises(CohortError, match="found no study 999"):
        studies.study(999)


def test_a_volume_is_an_array_to_its_readers(root, tmp_path):
    studies = studies_in(root, tmp_path / "index")
    volume = studies.study(101).series[labels.AXIAL_T2][0].volume
    read = read_study(root, "train", 101, series_of(root)).series[labels.AXIAL_T2][0].volume
    assert (volume.shape, volume.ndim, volume.size, len(volume), volume.dtype) == ((10, 32, 32), 3, 10240, 10, "f4")
    for index in (-1, np.int64(3), slice(2, 5), (4, slice(0, 3)), (2, 5, 7), ..., [1, 3]):
        assert np.array_equal(volume[index], read[index])
    assert volume.mean() == read.mean()
    assert volume.reshape(-1).shape == (10240,)
    with pytest.raises(IndexError):
        volume[10]
    with pytest.raises(AttributeError):
        _ = volume.nothing


def test_a_slice_that_is_kept_is_not_decoded_again(root, tmp_path, monkeypatch):
    studies = studies_in(root, tmp_path / "index", memory=4 * SLICE_BYTES)
    volume, opened = studies.study(102).series[labels.AXIAL_T2][0].volume, []
    real = dicom_folder.open_images
    monkeypatch.setattr(dicom_folder, "open_images", lambda file: opened.append(file.name) or real(file))
    with pytest.raises(ValueError, match="read-only"):
        volume[3][:] = -1  # others are given the same
    for index in (3, 4, 3, 5, 6, 3):
        assert volume[index].min() >= 0
    assert len(opened) == 4
    volume[7], volume[3], volume[4]
    assert len(opened) == 6  # of 3 to 7 the fourth was used longest ago
    assert studies.memory.used == 4 * SLICE_BYTES


def test_frames_of_one_file_are_decoded_together_however_little_is_kept(root, tmp_path, monkeypatch):
    make_odd(root)
    studies, opened, real = studies_in(root, tmp_path / "index", memory=0), [], dicom_folder.open_images
    monkeypatch.setattr(dicom_folder, "open_images", lambda file: opened.append(file.name) or real(file))
    (stack,) = [s for stacks in studies.study(104).series.values() for s in stacks if s.series_id == "1041"]
    assert np.asarray(stack.volume).shape == (5, 30, 20)
    assert len(opened) == 1


def test_memory_lets_go_what_was_used_longest_ago():
    memory = SliceMemory(100)
    for key in "abc":
        memory.put({key: np.zeros(40, np.uint8)})
    assert [memory.get(key) is not None for key in "abc"] == [False, True, True]
    memory.get("b")
    memory.put({"d": np.zeros(40, np.uint8)})
    assert [memory.get(key) is not None for key in "bcd"] == [True, False, True]
    memory.put({"d": np.zeros(10, np.uint8)})
    assert memory.used == 50
    memory.put({key: np.zeros(80, np.uint8) for key in "xyz"})
    assert (len(memory), memory.used) == (3, 240)  # at once decoded, together kept


def test_processes_share_a_quarter_of_the_free_memory(monkeypatch):
    monkeypatch.setattr(slice_memory, "free_ram", lambda: 16 << 30)
    assert memory_for_slices(1) == 4 << 30
    assert memory_for_slices(8) == 512 << 20
    assert memory_for_slices(4000) == LEAST


@pytest.mark.parametrize(("limit", "free"), [("3000000\n", 2_000_000), ("max\n", 5 << 20), ("500\n", 0)])
def test_free_memory_is_no_more_than_a_container_may_take(monkeypatch, limit, free):
    texts = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   5120 kB\n", "/sys/fs/cgroup/memory.max": limit,
             "/sys/fs/cgroup/memory.current": "1000000\n"}  # fmt: skip
    monkeypatch.setattr(slice_memory, "_text", lambda path: texts.get(path, ""))
    assert slice_memory.free_ram() == free


def test_the_index_is_small_and_what_is_sent_to_a_process_smaller(root, tmp_path):
    studies = studies_in(root, tmp_path / "index")
    n_slices = len(list(root.rglob("*.dcm")))
    assert sum(path.stat().st_size for path in (tmp_path / "index").iterdir()) < 130 * n_slices
    _ = np.asarray(studies.study(101).series[labels.AXIAL_T2][0].volume)
    assert studies.memory.used > 0
    copy = pickle.loads(pickle.dumps(studies))
    assert len(pickle.dumps(studies)) < 1000
    assert (copy.memory.used, copy.memory.most) == (0, studies.memory.most)
    assert_same_study(copy.study(101), read_study(root, "train", 101, series_of(root)))


def test_unchanged_studies_are_not_read_again_and_changed_or_damaged_ones_are(root, tmp_path, monkeypatch):
    studies_in(root, tmp_path / "index")
    read = []
    monkeypatch.setattr(dicom_folder, "read_study", lambda *a, **k: read.append(a[2]) or read_study(*a, **k))
    studies_in(root, tmp_path / "index")
    assert read == []
    (root / "train_images/103/1031/2.dcm").unlink()
    entry = tmp_path / "index/104.json.gz"
    entry.write_bytes(entry.read_bytes()[:-9])  # as a power cut may leave it
    (tmp_path / "index/105.json.gz").unlink()
    (tmp_path / "index/.tmp-106").write_text("of a process that was killed")
    assert_whole(root, studies_in(root, tmp_path / "index"))
    assert [k for k in read if k < 200] == [103, 104, 105]


def write_turned(path: Path) -> None:
    """A file of the same size whose image has another shape."""
    data = pydicom.dcmread(path)
    data.Rows, data.Columns = 16, 64
    pydicom.dcmwrite(path, data)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.unlink(), "cannot be read any more"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0\0"), "found another size than"),
        (lambda path: write_turned(path), "found other pixels"),
    ],
)
def test_a_file_that_changes_in_mid_training_is_one_line(root, tmp_path, spoil, said):
    studies = studies_in(root, tmp_path / "index")
    path = root / "train_images/101/1011/1.dcm"
    content = path.read_bytes()
    path.unlink()  # a link to the other tests' file
    path.write_bytes(content)
    spoil(path)
    stack = studies.study(101).series[labels.DESCRIPTIONS[1]][0]
    with pytest.raises(CohortError, match=rf"101/1011/1.dcm: {said}.*, expected the file as it was") as caught:
        _ = np.asarray(stack.volume)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_written_while_it_is_indexed_is_refused(root, tmp_path, monkeypatch):
    real = dicom_folder.decode_images

    def changed(images, shape):
        return [None if image is None else image + 1 for image in real(images, shape)]

    monkeypatch.setattr(dicom_folder, "decode_images", changed)
    with pytest.raises(CohortError, match="found other pixels when it was decoded again"):
        studies_in(root, tmp_path / "index")


def test_a_full_disk_is_one_line_and_the_next_call_goes_on(root, tmp_path, monkeypatch):
    real, written = dicom_folder.write_bytes, []

    def full(path, data, sync):
        if len(written) == 2:
            raise TrainingError(f"{path}: the disk is full")
        written.append(path)
        real(path, data, sync)

    with monkeypatch.context() as patch:
        patch.setattr(dicom_folder, "write_bytes", full)
        with pytest.raises(TrainingError, match=r"the disk is full; 2 of 6 studies are noted, the next call goes on"):
            studies_in(root, tmp_path / "index")
    assert_whole(root, studies_in(root, tmp_path / "index"))


def test_the_bytes_of_a_read_only_folder_are_enough(root, tmp_path):
    for folder in sorted(path for path in root.rglob("*") if path.is_dir()):
        os.chmod(folder, 0o555)
    try:
        before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
        assert_whole(root, studies_in(root, tmp_path / "index"))
        assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    finally:
        for folder in root.rglob("*"):
            if folder.is_dir():
                os.chmod(folder, 0o755)
