"""Selection of members: noise stays out, help comes in, and no study chooses the members that answer for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lumbar.errors import CohortError
from lumbar.metric import score_arrays
from lumbar_train.ensemble import selection
from lumbar_train.ensemble.agreement import error_correlation, most_different
from lumbar_train.ensemble.selection import Shed, greedy, keeping, select, shedding_order
from lumbar_train.evaluation.pool import Members, Sum, answer, fit_scales, score

N = 120
RNG_LABELS = np.random.default_rng(4)
LABELS = RNG_LABELS.choice(3, (N, 25), p=(0.65, 0.22, 0.13)).astype(np.int8)
LABELS[RNG_LABELS.random(LABELS.shape) < 0.02] = -1
PRIOR = np.tile([0.5, 0.3, 0.2], (N, 25, 1))
ALL = np.arange(N)


def reader(sureness: float, noise: float, seed: int) -> np.ndarray:
    """Logits (N, 5, 5, 3) of a member that sees the true class through noise of its own."""
    true = np.eye(3)[np.maximum(LABELS, 0)].reshape(N, 5, 5, 3)
    return (sureness * (true + noise * np.random.default_rng(seed).normal(size=true.shape))).astype(np.float32)


def random_logits(seed: int, size: float = 1.0) -> np.ndarray:
    return (size * np.random.default_rng(seed).normal(size=(N, 5, 5, 3))).astype(np.float32)


def members(
    logits: dict[str, np.ndarray], conditions: dict[str, tuple[int, ...]] | None = None, seconds=None
) -> Members:
    mask = np.ones((N, len(logits), 5, 5), bool)
    for m, name in enumerate(logits):
        mask[:, m] = np.isin(np.arange(5), (conditions or {}).get(name, range(5)))[None, :, None]
    cost = np.array(seconds or [1.0] * len(logits))
    stacked = np.stack(list(logits.values()), axis=1)
    return Members(tuple(logits), stacked, mask, LABELS, ALL % 4, PRIOR, cost)


@pytest.mark.parametrize(("size", "sureness"), [(0.1, 6.0), (1.0, 2.0), (4.0, 6.0)])
def test_of_ten_members_of_random_logits_beside_a_real_one_the_real_one_alone_is_kept(size, sureness):
    """Also where the real one is much surer than it is right, so that any noise would soften it."""
    logits = {f"noise{k}": random_logits(k, size) for k in range(10)} | {"real": reader(sureness, 0.6, 99)}
    chosen = select(members(logits), most=6)
    assert [members(logits).names[k] for k in chosen.picks] == ["real"]
    assert all(set(picks) == {10} for picks in chosen.by_fold.values())
    np.testing.assert_allclose(chosen.honest, chosen.single)


def test_members_that_err_apart_are_joined_and_the_honest_score_is_better_than_the_best_alone():
    logits = {f"m{k}": reader(2.0, 1.0, k) for k in range(3)}
    some = members(logits)
    chosen = select(some)
    assert set(chosen.picks) == {0, 1, 2}
    assert score(LABELS, chosen.honest) < score(LABELS, chosen.single) - 0.02
    assert chosen.weights(3).sum() == pytest.approx(1.0)
    assert chosen.path[-1].score == min(pick.score for pick in chosen.path)


def test_each_path_is_found_once(monkeypatch):
    """Without two of the four folds it is the same in either order: all, four without one and six without two."""
    kept = []
    monkeypatch.setattr(
        selection, "greedy", lambda some, rows, *more: kept.append(rows.tobytes()) or greedy(some, rows, *more)
    )
    select(members({"a": reader(2.0, 1.0, 0), "b": reader(2.0, 1.0, 1)}), most=2)
    assert len(set(kept)) == len(kept) == 11


def test_members_that_answer_other_conditions_complete_one_another():
    logits = {"sagittal": reader(3.0, 0.5, 1), "axial": reader(3.0, 0.5, 2)}
    chosen = select(members(logits, {"sagittal": (0, 1, 2), "axial": (3, 4)}))
    assert set(chosen.picks) == {0, 1}


def test_a_member_may_be_picked_more_than_once():
    logits = {"good": reader(3.0, 0.7, 1), "fair": reader(3.0, 1.4, 2)}
    picks = [pick.member for pick in greedy(members(logits), ALL, most=8)]
    assert picks.count(0) > picks.count(1) >= 1


def test_no_label_of_a_fold_has_a_say_in_what_answers_for_it():
    logits = {f"m{k}": reader(2.0, 0.8 + 0.2 * k, k) for k in range(3)} | {"noise": random_logits(7)}
    before = select(members(logits), most=4)
    other = LABELS.copy()
    other[ALL % 4 == 2] = (np.maximum(other[ALL % 4 == 2], 0) + 1) % 3
    after = select(replace(members(logits), labels=other), most=4)
    held_out = ALL % 4 == 2
    np.testing.assert_array_equal(before.honest[held_out], after.honest[held_out])
    np.testing.assert_array_equal(before.single[held_out], after.single[held_out])
    assert before.by_fold[2] == after.by_fold[2]
    assert not np.array_equal(before.honest[~held_out], after.honest[~held_out])


def test_with_two_folds_the_length_is_decided_within_each_of_them():
    logits = {"real": reader(3.0, 0.6, 1), "noise": random_logits(2), "more": random_logits(3)}
    chosen = select(replace(members(logits), folds=ALL % 2), most=4)
    assert chosen.picks == (0,)


def test_the_limit_of_seconds_chooses_what_fits():
    logits = {"slow": reader(3.0, 0.5, 1), "fast": reader(3.0, 0.7, 2), "other": reader(3.0, 0.8, 3)}
    some = members(logits, seconds=[5.0, 1.0, 1.0])
    assert 0 in select(some, most=4).picks
    assert set(select(some, limit_s=2.5, most=4).picks) == {1, 2}
    with pytest.raises(CohortError, match=r"found no member below 1 s a study, expected one within 0\.5 s"):
        select(some, limit_s=0.5)


def test_what_adds_least_a_second_is_shed_first():
    logits = {"strong": reader(3.0, 0.4, 1), "weak": reader(3.0, 1.2, 2), "slow": reader(3.0, 1.0, 3)}
    some = members(logits, seconds=[1.0, 1.0, 50.0])
    order = shedding_order(some, (0, 1, 2, 0))  # both take from the score: the weak one more a second
    assert order == [Shed(1, pytest.approx(-0.0188, abs=1e-4), 1.0), Shed(2, pytest.approx(-0.0241, abs=1e-4), 50.0)]
    one = members({"a": reader(3.0, 0.5, 1), "b": reader(3.0, 0.5, 2)}, seconds=[1.0, 10.0])
    assert [shed.member for shed in shedding_order(one, (0, 1))] == [1]


def test_the_pool_is_that_of_the_aggregator_and_its_score_that_of_the_competition():
    import torch

    from lumbar.config import AggregatorConfig
    from lumbar_train.stages.aggregate import pool_of

    logits = {"a": reader(2.0, 0.7, 1), "b": reader(2.0, 0.7, 2)}
    some = members(logits, {"a": (0, 1, 2), "b": (0, 3, 4)})
    probs = answer(Sum.of(some, (0, 1), ALL), np.ones(3), PRIOR)
    network = pool_of(AggregatorConfig(models=("a", "b")))
    log_prior = torch.from_numpy(np.log(PRIOR[0]).astype(np.float32)).view(5, 5, 3)
    with torch.no_grad():
        out = network(torch.from_numpy(some.logits), torch.from_numpy(some.mask), log_prior)
    np.testing.assert_allclose(probs, torch.softmax(out.double(), -1).numpy().reshape(N, 25, 3), atol=1e-6)
    assert score(LABELS, probs) == pytest.approx(score_arrays(LABELS.astype(int), probs).total, abs=1e-9)


def test_the_scale_is_where_the_log_loss_is_least():
    some = members({"sure": reader(9.0, 0.6, 1)})
    total = Sum.of(some, (0,), ALL)
    fitted = fit_scales(total, LABELS)

    def loss(scales: np.ndarray) -> float:
        probs = answer(total, scales, PRIOR)
        known = LABELS >= 0
        picked = np.take_along_axis(probs, np.maximum(LABELS, 0)[..., None].astype(int), 2)[..., 0]
        return float(-(np.log(picked) * np.array([1, 2, 4])[np.maximum(LABELS, 0)] * known).sum())

    assert (fitted < 1).all()
    for group in range(3):
        for factor in (0.98, 1.02):
            other = fitted.copy()
            other[group] *= factor
            assert loss(other) > loss(fitted)


def test_members_that_are_all_kept_are_scored_with_factors_of_other_folds():
    some = members({"sure": reader(9.0, 0.8, 1), "noise": random_logits(2)})
    chosen = select(some, most=1)
    kept = keeping(some, chosen, (0, 1))
    assert (kept.picks, kept.path) == ((0, 1), chosen.path)
    other = LABELS.copy()
    other[ALL % 4 == 2] = (np.maximum(other[ALL % 4 == 2], 0) + 1) % 3
    again = keeping(replace(some, labels=other), chosen, (0, 1))
    np.testing.assert_array_equal(kept.honest[ALL % 4 == 2], again.honest[ALL % 4 == 2])
    assert score(LABELS, kept.honest) > score(LABELS, kept.single)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"names": ("a", "a")}, "found two members named a, expected different names"),
        ({"folds": np.zeros(N, int)}, "found one fold, expected two or more"),
        ({"names": ()}, "found 0 members on 120 studies"),
    ],
)
def test_what_nothing_can_be_chosen_from_is_refused(change, said):
    some = replace(members({"a": reader(2, 0.5, 1), "b": reader(2, 0.5, 2)}), **change)
    with pytest.raises(CohortError) as error:
        select(some)
    assert said in str(error.value)


def test_the_errors_of_two_equal_members_go_together_and_those_of_strangers_do_not():
    logits = {"a": reader(2.0, 1.0, 1), "twin": reader(2.0, 1.0, 1), "other": reader(2.0, 1.0, 2)}
    logits["axial"] = random_logits(3)
    some = members(logits, {"a": (0, 1, 2), "twin": (0, 1, 2), "axial": (3, 4)})
    table = error_correlation(some)
    assert table[0, 1] == pytest.approx(1.0)
    assert table[0, 2] < 0.7
    assert np.isnan(table[0, 3])  # no target that both saw
    assert not np.isnan(table[2, 3])


def test_the_study_on_which_members_differ_most_comes_first_with_its_columns():
    one = np.zeros((N, 5, 5, 3), np.float32)
    two = one.copy()
    one[7, 0, 2], two[7, 0, 2] = (9, 0, 0), (0, 0, 9)
    one[9, 3, 1], two[9, 3, 1] = (9, 0, 0), (0, 9, 0)
    first, second, *rest = most_different(members({"a": one, "b": two}), (0, 1))
    assert (first.row, second.row, rest) == (7, 9, [])
    column, low, high, grade = first.columns[0]
    assert column == 2
    assert (low, high) == (pytest.approx(0.0, abs=1e-3), pytest.approx(2.0, abs=1e-3))
    assert grade == LABELS[7, 2]
