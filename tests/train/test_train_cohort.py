"""What of a cohort is trained on: studies without images, files of folds, and leaks that are refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

import train_tiny
from lumbar_train.data.tables import read_cohort
from lumbar_train.data.usable import NO_SERIES, NO_SLICE, as_trained

ONE_FIT = ("--stages", "axial_xy", "--folds", "0")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    yield
    torch.set_num_threads(1)


def edit(path: Path, change) -> None:
    frame = change(pd.read_csv(path, dtype=object))
    path.unlink()
    frame.to_csv(path, index=False)


def test_a_study_without_readable_series_is_dropped_and_counted(tiny_data, tmp_path, capsys):
    edit(tiny_data / "train_series_descriptions.csv", lambda f: f[f["study_id"] != "202"])
    shutil.rmtree(tiny_data / "train_images/203")
    for path in [
        *(tiny_data / "train_images/204").glob("*/*.dcm"),
        *(tiny_data / "train_images/205/2050").glob("*.dcm"),
    ]:
        path.unlink()
        path.write_text("no image")
    run = tmp_path / "run"
    assert train_tiny.train(tiny_data, run, *ONE_FIT) == 0
    said = capsys.readouterr().out
    assert f"left out: 3 × {NO_SERIES}" in said
    assert f"left out: 4 × {NO_SLICE}" in said  # three of study 204, one of study 205
    assert pd.read_csv(run / "folds.csv")["study_id"].tolist() == [201, 205, 206, 207, 208]
    noted = json.loads((run / "dropped.json").read_text())
    assert noted["studies"] == [202, 203, 204]
    assert noted["counts"][NO_SERIES] == 3
    assert train_tiny.train(tiny_data, run, *ONE_FIT, "--resume") == 0  # with the run's folds


def test_every_fold_of_a_file_is_fitted(tiny_data, tmp_path):
    table = pd.DataFrame({"study_id": range(201, 209), "fold": [0, 1, 2, 0, 1, 2, 0, 1]})
    table.to_csv(tmp_path / "folds.csv", index=False)
    stage = ("--stages", "axial_xy")
    assert train_tiny.train(tiny_data, tmp_path / "run", "--fold-file", str(tmp_path / "folds.csv"), *stage) == 0
    fits = {path.stem for path in (tmp_path / "run/axial_xy").glob("*.safetensors")}
    assert fits == {"fold0", "fold1", "fold2", "full"}


def test_a_fold_file_may_name_studies_that_were_dropped_but_no_others(tiny_data, tmp_path, capsys):
    shutil.rmtree(tiny_data / "train_images/203")
    table = pd.DataFrame({"study_id": range(201, 209), "fold": [0, 1] * 4})
    table.to_csv(tmp_path / "folds.csv", index=False)
    assert train_tiny.train(tiny_data, tmp_path / "run", "--fold-file", str(tmp_path / "folds.csv"), *ONE_FIT) == 0
    assert 203 not in set(pd.read_csv(tmp_path / "run/folds.csv")["study_id"])
    table.loc[8] = [999, 0]
    table.to_csv(tmp_path / "folds.csv", index=False)
    capsys.readouterr()
    assert train_tiny.train(tiny_data, tmp_path / "other", "--fold-file", str(tmp_path / "folds.csv"), *ONE_FIT) == 1
    assert "study 999 is not in the cohort (1 unknown studies)" in capsys.readouterr().err
    assert not (tmp_path / "other/folds.csv").exists()


def test_a_cohort_without_any_readable_study_is_one_line(tiny_data, tmp_path, capsys):
    for path in tiny_data.glob("train_images/*/*/*.dcm"):
        path.unlink()
        path.write_text("no image")
    assert train_tiny.train(tiny_data, tmp_path / "run") == 1
    assert "none of 8 studies has a readable series" in capsys.readouterr().err


def test_a_run_is_read_as_it_was_trained(tiny_data, tmp_path):
    cohort = read_cohort(tiny_data, progress=False)
    (tmp_path / "dropped.json").write_text(json.dumps({"studies": [203, 999], "counts": {"because": 1}}))
    kept = as_trained(tmp_path, cohort)
    assert 203 not in kept.study_ids
    assert len(kept.labels) == len(kept) == 7
    assert kept.dropped == {"because": 1}
    assert not (kept.points["study_id"] == 203).any()
    assert kept.fingerprint == cohort.fingerprint
    assert as_trained(tmp_path / "none", cohort).study_ids.tolist() == cohort.study_ids.tolist()


# Leaks


def test_a_study_in_two_folds_is_refused(tiny_data, tmp_path, capsys):
    table = pd.DataFrame({"study_id": [*range(201, 209), 201], "fold": [0, 1] * 4 + [1]})
    table.to_csv(tmp_path / "folds.csv", index=False)
    assert train_tiny.train(tiny_data, tmp_path / "run", "--fold-file", str(tmp_path / "folds.csv")) == 1
    assert "study 201 is in folds 0, 1, expected one" in capsys.readouterr().err


def test_upsampling_before_the_split_is_refused(tiny_data, tmp_path, capsys):
    """A minority study is copied under another name; the copies would lie on both sides."""
    shutil.copytree(tiny_data / "train_images/201", tiny_data / "train_images/901")
    for name in ("train.csv", "train_series_descriptions.csv", "train_label_coordinates.csv"):
        edit(tiny_data / name, lambda f: pd.concat([f, f[f["study_id"] == "201"].assign(study_id="901")]))
    table = pd.DataFrame({"study_id": [*range(201, 209), 901], "fold": [0, 1] * 4 + [1]})
    table.to_csv(tmp_path / "folds.csv", index=False)
    assert train_tiny.train(tiny_data, tmp_path / "run", "--fold-file", str(tmp_path / "folds.csv")) == 1
    assert "study 901 in fold 1 holds the same images as study 201 in fold 0" in capsys.readouterr().err
    table.loc[8, "fold"] = 0
    table.to_csv(tmp_path / "folds.csv", index=False)
    assert train_tiny.train(tiny_data, tmp_path / "run", "--fold-file", str(tmp_path / "folds.csv"), *ONE_FIT) == 0
