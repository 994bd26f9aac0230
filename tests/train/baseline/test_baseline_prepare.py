"""Conversion to 8-bit images: what is converted again, what is kept, what is refused."""

import json

import cv2
import numpy as np
import pandas as pd
import pytest

from lumbar.errors import CohortError
from lumbar.labels import AXIAL_T2, COLUMNS, SAGITTAL_T1
from lumbar_train.baseline import prepare as module
from lumbar_train.baseline.prepare import Images, describe_problems, prepare, write_label_tables
from lumbar_train.errors import TrainingError

STUDIES = list(range(101, 107))


@pytest.fixture
def converted(monkeypatch):
    """Studies that were converted since the last look."""
    studies, convert = [], module._convert

    def counting(work, root, study_id, *rest):
        studies.append(study_id)
        return convert(work, root, study_id, *rest)

    monkeypatch.setattr(module, "_convert", counting)
    return studies


def run(root, work, **options):
    series = pd.read_csv(root / "train_series_descriptions.csv")
    options = {"description": SAGITTAL_T1, "size": 32, "slices": 3, "batch": 2, "threads": 1} | options
    return prepare(work, root, "train", series, progress=False, **options)


def test_every_study_is_converted_once_and_a_second_run_keeps_all(root, tmp_path, converted):
    first = run(root, tmp_path / "work")
    assert sorted(converted) == STUDIES
    converted.clear()
    second = run(root, tmp_path / "work")
    assert converted == []
    pd.testing.assert_frame_equal(first.table, second.table)
    np.testing.assert_array_equal(first.pixels, second.pixels)
    assert first.pixels.shape == (18, 32, 32)
    assert first.pixels.dtype == np.uint8
    for row, path in enumerate(first.table["image_path"]):
        np.testing.assert_array_equal(
            cv2.imread(str(tmp_path / "work" / path), cv2.IMREAD_GRAYSCALE), first.pixels[row]
        )


def test_only_the_batch_of_a_changed_file_is_converted_again(root, tmp_path, converted):
    run(root, tmp_path / "work")
    converted.clear()
    path = root / "train_images" / "103" / "1030" / "4.dcm"
    data = path.read_bytes()
    path.unlink()  # a hard link
    path.write_bytes(data)
    run(root, tmp_path / "work")
    assert sorted(converted) == [103, 104]


def test_a_lost_image_brings_its_batch_back(root, tmp_path, converted):
    images = run(root, tmp_path / "work")
    converted.clear()
    (tmp_path / "work" / images.table["image_path"].iloc[-1]).unlink()
    run(root, tmp_path / "work")
    assert sorted(converted) == [105, 106]


@pytest.mark.parametrize("change", [{"size": 48}, {"slices": 1}, {"description": AXIAL_T2}, {"batch": 3}])
def test_other_settings_convert_everything_again(root, tmp_path, converted, change):
    run(root, tmp_path / "work")
    converted.clear()
    images = run(root, tmp_path / "work", **change)
    assert sorted(converted) == STUDIES
    assert images.pixels.shape[1] == change.get("size", 32)


def test_batches_before_the_start_are_trusted_without_a_look_at_their_files(root, tmp_path, converted):
    run(root, tmp_path / "work")
    converted.clear()
    (root / "train_images" / "101" / "1010" / "4.dcm").unlink()
    images = run(root, tmp_path / "work", start_batch=1)
    assert converted == []
    assert len(images.table) == 18


def test_a_start_beyond_what_was_converted_is_refused(root, tmp_path):
    with pytest.raises(
        CohortError, match=r"0000\.json: found no record of these settings, expected one before --start-batch 1"
    ):
        run(root, tmp_path / "work", start_batch=1)
    with pytest.raises(CohortError, match="--start-batch: found 4, expected 0 to 3"):
        run(root, tmp_path / "work", start_batch=4)
    with pytest.raises(CohortError, match=r"found series described as .*, expected some described as 'Coronal'"):
        run(root, tmp_path / "work", description="Coronal")
    assert not (tmp_path / "work" / "images.npy").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "", lambda text: text[:40], lambda text: "[]", lambda text: "null", lambda text: "[" * 100_000,
        lambda text: '{"identity": {}}', lambda text: text.replace('"identity"', '"x"'),
        lambda text: text.replace('"images"', '"x"'), lambda text: text.replace('"problems"', '"x"'),
        lambda text: json.dumps(json.loads(text) | {"images": [[103]]}),
    ],
)  # fmt: skip
def test_a_damaged_record_counts_as_none(root, tmp_path, converted, damage):
    run(root, tmp_path / "work")
    converted.clear()
    path = tmp_path / "work" / "batches" / "0001.json"
    path.write_text(damage(path.read_text()))
    run(root, tmp_path / "work")
    assert sorted(converted) == [103, 104]


def test_a_damaged_image_is_named_when_it_is_packed(root, tmp_path):
    images = run(root, tmp_path / "work")
    path = tmp_path / "work" / images.table["image_path"].iloc[0]
    path.write_bytes(b"no PNG")
    (tmp_path / "work" / "images.json").unlink()
    with pytest.raises(TrainingError, match=r"\.png: damaged, expected a PNG of 32 x 32"):
        run(root, tmp_path / "work")
    assert not (tmp_path / "work" / "images.json").exists()


def test_the_hash_tells_copies_and_is_empty_for_an_image_of_one_value(root, tmp_path, monkeypatch):
    monkeypatch.setattr(
        module, "eight_bit", lambda study, chosen, size: np.full((size, size), 7, np.uint8)
        if chosen.instance_number == 4 else np.arange(size * size, dtype=np.uint8).reshape(size, size)
    )  # fmt: skip
    table = run(root, tmp_path / "work").table
    assert set(table.loc[table["instance_number"] == 4, "pixels"]) == {""}
    others = set(table.loc[table["instance_number"] != 4, "pixels"])
    assert len(others) == 1
    assert others != {""}


def test_label_tables_have_the_images_of_labelled_studies(tmp_path):
    table = pd.DataFrame(
        [(study, 1, k, f"images/{study}/1/{k}.png", "") for study in (5, 9) for k in (1, 2)], columns=module.TABLE
    )
    labels = np.full((2, 25), -1, np.int8)
    labels[1, 0] = 2
    write_label_tables(tmp_path, Images(table, np.zeros((4, 8, 8), np.uint8), []), labels, np.array([5, 9]),
                       list(COLUMNS[:2]))  # fmt: skip
    first = pd.read_csv(tmp_path / f"{COLUMNS[0]}_image_paths_labels.csv")
    assert first["study_id"].tolist() == [9, 9]
    assert set(first["label"]) == {"Severe"}
    assert len(pd.read_csv(tmp_path / f"{COLUMNS[1]}_image_paths_labels.csv")) == 0


def test_many_problems_are_shortened():
    assert describe_problems(["a"]) == ["a"]
    assert describe_problems([str(k) for k in range(9)]) == ["0", "1", "2", "3", "4", "and 4 more"]


def test_the_record_of_a_batch_names_its_studies_and_settings(root, tmp_path):
    run(root, tmp_path / "work")
    record = json.loads((tmp_path / "work" / "batches" / "0000.json").read_text())
    assert record["identity"]["studies"] == [101, 102]
    assert record["identity"]["description"] == SAGITTAL_T1
    assert record["problems"] == []
