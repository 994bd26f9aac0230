import pytest

from lumbar_train.stages.ahead import Ahead

COSTS = {("points", -1): 80.0, ("points", 0): 40.0, ("points", 1): 40.0, ("grades", -1): 8.0}
FOLDS = [-1, 0, 1]


def test_what_is_left_is_counted_in_epochs_of_the_fit_at_hand():
    ahead = Ahead(COSTS, later=8.0)
    assert ahead.epochs_beyond("points", -1, FOLDS, 10) == pytest.approx((40 + 40 + 8) / 8)
    assert ahead.epochs_beyond("points", 1, FOLDS, 10) == pytest.approx(8 / 4)
    assert Ahead(COSTS).epochs_beyond("grades", -1, [-1], 2) == 0.0


def test_a_costly_first_stage_does_not_stand_for_cheap_later_ones():
    by_cost = Ahead(COSTS, later=8.0).epochs_beyond("points", 1, FOLDS, 10)
    dear = {**COSTS, ("points", 1): 4000.0}
    assert Ahead(dear, later=8.0).epochs_beyond("points", 1, FOLDS, 10) < by_cost / 50


def test_fits_that_run_side_by_side_are_not_waited_for():
    two = Ahead(COSTS, later=8.0, jobs=2)
    assert two.epochs_beyond("points", -1, FOLDS, 10) == pytest.approx((40 + 8) / 2 / 8)
    assert two.epochs_beyond("points", 0, FOLDS, 10) == pytest.approx((40 + 8) / 2 / 4)


def test_folds_that_were_finished_before_count_nothing():
    ahead = Ahead({("points", 1): 40.0})
    assert ahead.epochs_beyond("points", 1, FOLDS, 10) == 0.0
    assert ahead.epochs_beyond("points", 0, FOLDS, 10) == 0.0
