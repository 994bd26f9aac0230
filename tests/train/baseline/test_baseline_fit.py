"""One fit: when a finished one is kept, what it learns from, what it does without two classes."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lumbar.labels import COLUMNS
from lumbar_train.baseline import fit
from lumbar_train.baseline.fit import Job, finished, fold_title, run_fit
from lumbar_train.baseline.settings import Settings
from lumbar_train.data.folds import FULL
from lumbar_train.errors import LeakError

SETTINGS = Settings(arch="small", size=32, epochs=1, batch_size=4, finder_steps=10)


@pytest.fixture
def job(tmp_path):
    """Six studies of two images each, classes 0, 0, 1, 1, 2, 2; the first and the last are held out."""
    work = tmp_path / "work"
    work.mkdir()
    rows = [(study, study * 10, k, f"images/{study}/{k}.png", f"{study}-{k}") for study in range(1, 7) for k in (1, 2)]
    columns = ["study_id", "series_id", "instance_number", "image_path", "pixels"]
    pd.DataFrame(rows, columns=columns).to_csv(work / "images.csv", index=False)
    np.save(work / "images.npy", np.random.default_rng(0).integers(0, 255, (12, 32, 32), np.uint8))
    (work / "images.json").write_text(json.dumps({"key": "one"}))
    folder = tmp_path / "fits" / "fold0"
    folder.mkdir(parents=True)
    return Job(COLUMNS[3], 0, SETTINGS, folder, work, tuple(range(1, 7)), (0, 0, 1, 1, 2, 2), frozenset({1, 6}))


def leave(job, **content):
    (job.folder / "fit.json").write_text(json.dumps({"identity": job.identity, "status": "fitted"} | content))


def test_a_finished_fit_is_kept(job):
    assert finished(job) is None
    leave(job, lr=0.5)
    assert finished(job)["lr"] == 0.5
    assert run_fit(job)["lr"] == 0.5  # nothing is fitted


@pytest.mark.parametrize(
    "change",
    [
        {"settings": replace(SETTINGS, epochs=2)}, {"settings": replace(SETTINGS, amp="bf16")}, {"fold": 1},
        {"column": COLUMNS[4]}, {"classes": (0, 0, 1, 1, 2, -1)}, {"held_out": frozenset({1})},
        {"studies": tuple(range(2, 8))},
    ],
)  # fmt: skip
def test_a_fit_of_anything_else_is_not(job, change):
    leave(job)
    assert finished(replace(job, **change)) is None


def test_a_fit_on_other_images_is_not_kept_but_the_device_does_not_matter(job):
    leave(job)
    assert finished(replace(job, device="cuda:1")) is not None
    (job.work / "images.json").write_text(json.dumps({"key": "two"}))
    assert finished(job) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"identity": "other"}'])
def test_a_damaged_result_counts_as_none(job, content):
    (job.folder / "fit.json").write_text(content)
    assert finished(job) is None


@pytest.mark.parametrize(
    ("classes", "labels"), [((0, 1, 1, 1, 1, 0), r"one class \(Moderate\)"), ((0, -1, -1, -1, -1, 0), "no label")]
)
def test_without_two_classes_the_constant_is_answered_and_nothing_is_left_behind(job, classes, labels):
    for name in ("weights.safetensors", "oof.parquet", "checkpoint.pt"):
        (job.folder / name).write_text("of an earlier fit")
    result = run_fit(replace(job, classes=classes))
    assert result["status"] == "constant"
    n = 8 if "Moderate" in labels else 0
    pattern = rf"{COLUMNS[3]}, fold 0: found {labels} among {n} training images, expected two or more"
    assert pd.Series([result["reason"]]).str.contains(pattern).all()
    assert {path.name for path in job.folder.iterdir()} == {"fit.json", "started.json"}


def test_a_checkpoint_of_the_same_fit_survives_and_of_another_does_not(job):
    (job.folder / "checkpoint.pt").write_text("state")
    (job.folder / "started.json").write_text(json.dumps({"identity": job.identity}))
    fit._remove_outdated(job)
    assert (job.folder / "checkpoint.pt").exists()
    fit._remove_outdated(replace(job, fold=1))
    assert not (job.folder / "checkpoint.pt").exists()
    (job.folder / "checkpoint.pt").write_text("state")
    (job.folder / "started.json").write_text("[]")
    fit._remove_outdated(job)
    assert not (job.folder / "checkpoint.pt").exists()


def test_a_fit_leaves_weights_logits_of_the_held_out_studies_and_its_log(job):
    result = run_fit(job)
    assert result["status"] == "fitted"
    assert result["seen"] == [2, 3, 4, 5]
    assert result["train_images"] == 8
    assert result["upsampled_images"] == 12  # classes of 2, 4 and 2 images
    assert result["network"]["balance"] == pytest.approx([1 / 3] * 3, abs=1e-5)
    table = pd.read_parquet(job.folder / "oof.parquet")
    assert table["study_id"].tolist() == [1, 1, 6, 6]
    assert np.isfinite(table[fit.LOGITS].to_numpy()).all()
    names = {path.name for path in job.folder.iterdir()}
    assert names == {"fit.json", "started.json", "weights.safetensors", "oof.parquet", "log.csv", "finder.csv"}


def test_a_fit_on_all_data_predicts_nothing(job):
    run_fit(replace(job, fold=FULL, held_out=frozenset(), settings=replace(SETTINGS, base_lr=1e-3)))
    names = {path.name for path in job.folder.iterdir()}
    assert names == {"fit.json", "started.json", "weights.safetensors", "log.csv"}
    assert json.loads((job.folder / "fit.json").read_text())["lr_reason"] == "as asked"


def test_rows_with_a_leak_never_reach_the_network(job, monkeypatch):
    monkeypatch.setattr(fit, "upsample", lambda rows, classes, seed: np.array([0, 2, 4]))
    with pytest.raises(LeakError, match="both trained on and held out"):
        run_fit(job)
    assert not (job.folder / "fit.json").exists()


def studies_of(table, rows):
    return set(table["study_id"].iloc[rows])


def test_studies_that_decide_when_to_stop_are_kept_out_of_training():
    table = pd.DataFrame({"study_id": np.repeat(np.arange(30), 2)})
    classes = np.repeat(np.arange(30) % 3, 2).astype(np.int8)
    rows = np.arange(4, 60)
    learn, apart = fit._keep_apart(table, rows, classes, replace(SETTINGS, stop_accuracy=0.9), 1)
    assert sorted([*learn, *apart]) == rows.tolist()
    assert studies_of(table, learn).isdisjoint(studies_of(table, apart))
    assert len(studies_of(table, apart)) == 6  # a fifth, rounded up
    assert set(classes[learn]) == set(classes[apart]) == {0, 1, 2}


def test_nothing_is_kept_apart_where_it_is_not_asked_for_or_would_cost_a_class():
    table = pd.DataFrame({"study_id": np.arange(12)})
    common, rare = np.zeros(12, np.int8), np.zeros(12, np.int8)
    rare[3] = 2
    asked = replace(SETTINGS, stop_accuracy=0.9)
    assert len(fit._keep_apart(table, np.arange(12), common, SETTINGS, 0)[1]) == 0
    assert len(fit._keep_apart(table, np.arange(8), common, asked, 0)[1]) == 0
    for seed in range(8):
        learn, apart = fit._keep_apart(table, np.arange(12), rare, asked, seed)
        assert 3 in learn
        assert len(apart) in (0, 3)


def test_folds_have_readable_names():
    assert fold_title(2) == "fold 2"
    assert fold_title(FULL) == "the fit on all data"
