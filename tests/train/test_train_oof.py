from __future__ import annotations

import pandas as pd
import pytest

from lumbar.errors import CohortError
from lumbar_train.data.folds import FULL
from lumbar_train.errors import LeakError
from lumbar_train.outputs.oof import Part, check_oof_frame, check_unseen, gather, read_seen, write_seen

FOLDS = pd.DataFrame({"study_id": [1, 2, 3, 4], "fold": [0, 1, 0, 1]})
FOLD0 = Part(0, frozenset({2, 4}), {1: "a", 3: "c"})
FOLD1 = Part(1, frozenset({1, 3}), {2: "b", 4: "d"})


def test_honest_parts_are_gathered_in_order():
    assert gather([FOLD1, FOLD0], FOLDS, is_complete=True) == {1: "a", 2: "b", 3: "c", 4: "d"}
    assert gather([FOLD0], FOLDS) == {1: "a", 3: "c"}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([Part(0, frozenset({2, 3, 4}), {1: "a", 3: "c"})], "study 3 is predicted by fold 0's weights"),
        ([Part(0, frozenset(), {2: "b"})], "study 2 is predicted as held out by fold 0, but belongs to 1"),
        ([Part(0, frozenset(), {9: "x"})], "study 9 .* belongs to no fold"),
        ([FOLD0, FOLD0], "study 1 is predicted twice"),
        ([Part(FULL, frozenset(), {1: "a"})], "a fit on all data has seen every study"),
    ],
)
def test_planted_leaks_are_refused(parts, message):
    with pytest.raises(LeakError, match=message):
        gather(parts, FOLDS)


def test_a_study_without_an_output_is_named_where_all_are_expected():
    with pytest.raises(CohortError, match="study 2 has no out-of-fold output \\(2 studies"):
        gather([FOLD0], FOLDS, is_complete=True)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1, 0), (1, 1)], "study 1 has outputs of two folds"),
        ([(1, 1)], "study 1 was predicted by fold 1, but is held out in fold 0"),
        ([(7, 1)], "study 7 was predicted by fold 1, but is held out in no fold"),
        ([(1, FULL)], "outputs of a fit on all data"),
    ],
)
def test_stored_tables_with_leaks_are_refused(rows, message):
    with pytest.raises(LeakError, match=message):
        check_oof_frame(pd.DataFrame(rows, columns=["study_id", "fold"]), FOLDS, "oof.parquet")


def test_stored_tables_are_checked_for_their_columns():
    check_oof_frame(pd.DataFrame({"study_id": [1, 1, 2], "fold": [0, 0, 1]}), FOLDS, "oof.parquet")
    with pytest.raises(CohortError, match="found no column fold"):
        check_oof_frame(pd.DataFrame({"study_id": [1]}), FOLDS, "oof.parquet")


def test_weights_remember_what_they_have_seen(tmp_path):
    weights = tmp_path / "fold0.safetensors"
    weights.write_bytes(b"weights")
    write_seen(weights, 0, [4, 2])
    assert read_seen(weights) == (0, frozenset({2, 4}))
    check_unseen(weights, [1, 3])
    with pytest.raises(LeakError, match=r"fold 0's fit has seen study 2 \(1 of those"):
        check_unseen(weights, [1, 2])
    write_seen(weights, FULL, [1, 2, 3, 4])
    with pytest.raises(LeakError, match="the fit on all data has seen study 1"):
        check_unseen(weights, [1])


def test_weights_whose_past_is_unknown_are_refused(tmp_path):
    weights = tmp_path / "fold0.safetensors"
    weights.write_bytes(b"weights")
    with pytest.raises(LeakError, match=r"fold0\.seen\.json: cannot be read"):
        check_unseen(weights, [1])
    write_seen(weights, 0, [2])
    weights.write_bytes(b"other weights")
    with pytest.raises(LeakError, match="what they have seen is unknown"):
        check_unseen(weights, [1])
