from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lumbar.errors import CohortError
from lumbar_train.data.folds import FULL, check_split, make_folds, parse_folds, read_folds, split, write_folds
from lumbar_train.data.tables import Cohort
from lumbar_train.errors import LeakError


def synthetic(n: int, seed: int = 0) -> Cohort:
    rng = np.random.default_rng(seed)
    values = rng.choice([-1, 0, 1, 2], (n, 25), p=(0.02, 0.78, 0.15, 0.05)).astype(np.int8)
    empty = pd.DataFrame()
    return Cohort(Path("somewhere"), "train", np.arange(1000, 1000 + n), values, empty, empty)


def test_folds_place_each_study_once_and_balance_severity():
    cohort = synthetic(200)
    folds = make_folds(cohort, 4, seed=3)
    assert folds["study_id"].tolist() == cohort.study_ids.tolist()
    assert folds["fold"].value_counts().tolist() == [50] * 4
    severe = (cohort.labels[:, :5] == 2).any(axis=1)
    shares = [severe[folds["fold"] == fold].mean() for fold in range(4)]
    assert max(shares) - min(shares) < 0.07  # three strata, each even to one study in 50
    weight = np.array([1.0, 2.0, 4.0, 0.0])[cohort.labels].mean(axis=1)
    means = [weight[folds["fold"] == fold].mean() for fold in range(4)]
    assert max(means) - min(means) < 0.04


def test_folds_depend_on_the_seed_alone():
    cohort = synthetic(40)
    assert make_folds(cohort, 4, 1).equals(make_folds(cohort, 4, 1))
    assert not make_folds(cohort, 4, 1).equals(make_folds(cohort, 4, 2))


@pytest.mark.parametrize("n", [2, 3, 5, 9])
def test_tiny_cohorts_still_fold_without_warnings(n):
    for seed in range(20):
        folds = make_folds(synthetic(n, seed), 2, seed=0)
        assert sorted(folds["fold"].unique()) == [0, 1]


def test_more_folds_than_studies_is_refused():
    with pytest.raises(CohortError, match="7 folds of 5 studies"):
        make_folds(synthetic(5), 7, seed=0)


def test_folds_survive_the_file(tmp_path):
    cohort = synthetic(12)
    folds = make_folds(cohort, 3, 0)
    write_folds(tmp_path / "folds.csv", folds)
    assert read_folds(tmp_path / "folds.csv", cohort).equals(folds)


def test_the_seeds_file_with_labels_beside_is_accepted(tmp_path):
    cohort = synthetic(8)
    frame = cohort.frame().assign(fold=np.arange(8) % 4)
    frame.sample(frac=1, random_state=0).to_csv(tmp_path / "train_folded_v1.csv")
    folds = read_folds(tmp_path / "train_folded_v1.csv", cohort)
    assert folds["fold"].tolist() == [0, 1, 2, 3] * 2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f: f.drop(columns="fold"), CohortError, "found no column fold"),
        (lambda f: pd.concat([f, f[:1].assign(fold=1)]), LeakError, "study 1000 is in folds 0, 1"),
        (lambda f: pd.concat([f, f[:1]]), CohortError, "study 1000 has several rows"),
        (lambda f: pd.concat([f, pd.DataFrame({"study_id": [5], "fold": [0]})]), CohortError, "study 5 is not in"),
        (lambda f: f[2:], CohortError, "study 1000 of the cohort has no fold \\(2 studies"),
        (lambda f: f.assign(fold="a"), CohortError, "row 2: fold is 'a'"),
        (lambda f: f.assign(fold=-1), CohortError, "row 2: fold is '-1'"),
        (lambda f: f.assign(fold=0), CohortError, "found one fold"),
    ],
)
def test_bad_fold_files_are_refused(tmp_path, change, error, message):
    cohort = synthetic(6)
    frame = pd.DataFrame({"study_id": cohort.study_ids, "fold": [0, 1, 0, 1, 0, 1]})
    change(frame).to_csv(tmp_path / "folds.csv", index=False)
    with pytest.raises(error, match=message):
        read_folds(tmp_path / "folds.csv", cohort)


def test_absent_and_empty_fold_files_are_refused(tmp_path):
    with pytest.raises(CohortError, match="not found"):
        read_folds(tmp_path / "folds.csv", synthetic(4))
    (tmp_path / "folds.csv").write_text("")
    with pytest.raises(CohortError, match="not a readable CSV"):
        read_folds(tmp_path / "folds.csv", synthetic(4))


def test_split_and_full():
    folds = make_folds(synthetic(10), 2, 0)
    train, held_out = split(folds, 0)
    assert sorted([*train, *held_out]) == folds["study_id"].tolist()
    check_split(train, held_out)
    everything, none = split(folds, FULL)
    assert len(everything) == 10
    assert len(none) == 0
    with pytest.raises(CohortError, match="fold 4: no study"):
        split(folds, 4)


def test_upsampling_before_the_split_is_refused():
    """Seed 1 copied minority studies first and split the copies: validation held training images."""
    ids = np.arange(10)
    upsampled = np.concatenate([ids, ids[:3], ids[:3]])
    order = np.random.default_rng(0).permutation(len(upsampled))
    half = upsampled[order]
    with pytest.raises(LeakError, match="both trained on and held out"):
        check_split(half[:8], half[8:])


def test_fold_words_are_parsed():
    folds = make_folds(synthetic(10), 2, 0)
    assert parse_folds("0,1,full", folds) == [0, 1, FULL]
    assert parse_folds(None, make_folds(synthetic(10), 3, 0)) == [0, 1, 2, FULL]
    for text in ("0,7", "all", "", "0,0"):
        with pytest.raises(CohortError, match="--folds"):
            parse_folds(text, folds)
