"""No validation image, nor a copy of it, is ever trained on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lumbar_train.baseline.balance import check_images, split_images, upsample
from lumbar_train.errors import LeakError


def images(n_studies=6, each=4):
    rows = [(study, f"images/{study}/1/{k}.png", f"{study}-{k}") for study in range(n_studies) for k in range(each)]
    return pd.DataFrame(rows, columns=["study_id", "image_path", "pixels"])


def test_every_class_becomes_as_frequent_as_the_commonest_and_each_image_equally_often():
    classes = np.array([0] * 10 + [1] * 3 + [2], dtype=np.int8)
    rows = upsample(np.arange(100, 114), classes, seed=0)
    counts = pd.Series(rows).value_counts()
    assert len(rows) == 30
    assert all(counts[100 + k] == 1 for k in range(10))
    assert sorted(counts[110 + k] for k in range(3)) == [3, 3, 4]
    assert counts[113] == 10


def test_a_class_that_is_absent_stays_absent():
    classes = np.array([0, 0, 2], np.int8)
    assert np.bincount(classes[upsample(np.arange(3), classes, 0)]).tolist() == [2, 0, 2]


def test_upsampling_after_the_split_never_reaches_held_out_studies():
    table = images()
    classes = np.array([0, 0, 0, 1] * 6, np.int8)
    for held_out in range(6):
        split = split_images(table, classes, set(range(6)) - {held_out}, {held_out})
        rows = upsample(split.train, classes[split.train], seed=held_out)
        assert held_out not in set(table["study_id"].iloc[rows])
        assert set(table["pixels"].iloc[rows]).isdisjoint(table["pixels"].iloc[split.held_out])
        check_images(table, rows, split.held_out)


def test_upsampling_before_the_split_is_refused():
    table = images()
    upsampled = pd.concat([table, table.iloc[[3, 7, 11]]], ignore_index=True)
    order = np.random.default_rng(0).permutation(len(upsampled))
    with pytest.raises(LeakError, match="study 2 is both trained on and held out"):
        check_images(upsampled, np.setdiff1d(order, [11]), np.array([11]))
    with pytest.raises(LeakError, match=r"images/0/1/3.png: is both trained on and held out"):
        check_images(table, np.array([1, 3]), np.array([3, 5]))


def test_a_copy_under_another_study_is_refused_and_left_out_of_training():
    table = images()
    table.loc[4, "pixels"] = table.loc[0, "pixels"]  # study 1 shows a picture of study 0
    classes = np.zeros(len(table), np.int8)
    with pytest.raises(LeakError, match=r"images/1/1/0.png: is trained on and a copy of a held-out image \(1 such\)"):
        check_images(table, np.arange(4, 24), np.arange(4))
    split = split_images(table, classes, {1, 2, 3, 4, 5}, {0})
    assert split.n_copies == 1
    assert 4 not in split.train
    assert len(split.train) == 19


def test_black_pictures_are_no_copies_of_one_another():
    table = images().assign(pixels="")
    split = split_images(table, np.zeros(len(table), np.int8), {1, 2, 3, 4, 5}, {0})
    assert split.n_copies == 0


def test_a_study_on_both_sides_is_refused():
    with pytest.raises(LeakError, match="study 2 is both"):
        split_images(images(), np.zeros(24, np.int8), {1, 2}, {2, 3})
