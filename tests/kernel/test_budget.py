import os
import subprocess
import sys

import numpy as np
import pytest

from lumbar.errors import CohortError
from lumbar.workers import budget as budget_module
from lumbar.workers.budget import Budget, Effort, parse_time_limit, process_start
from lumbar.workers.effort import UNKNOWN_TIMES, FewerMembers, Spared


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def run(limit_s, n_studies, cost_s, n_workers=1):
    """Do studies until the budget says stop; return the efforts used and the seconds taken."""
    clock = Clock()
    budget = Budget(limit_s, n_studies, n_workers=n_workers, clock=clock, reserve_s=0.0)
    efforts = []
    for _ in range(n_studies):
        effort = budget.next_effort()
        if budget.is_over():
            break
        clock.now += cost_s[effort] / n_workers
        budget.finished(cost_s[effort], effort)
        efforts.append(effort)
    return efforts, clock.now - 100.0


COST = {Effort.FULL: 10.0, Effort.NO_AUGMENTATION: 5.0, Effort.ONE_FOLD: 2.0, Effort.ONE_MODEL: 1.0}


@pytest.mark.parametrize(
    ("text", "seconds"), [("8.5h", 30600.0), ("30m", 1800.0), ("90s", 90.0), ("12", 12.0), (45, 45.0), ("0s", 0.0)]
)
def test_time_limits_are_read(text, seconds):
    assert parse_time_limit(text) == seconds


@pytest.mark.parametrize("text", ["", "fast", "-3h", "3 days", "nan", "1h30m"])
def test_a_time_limit_that_is_no_duration_is_refused(text):
    with pytest.raises(CohortError, match=r"expected a duration such as 8\.5h, 30m or 90s"):
        parse_time_limit(text)


def test_with_time_to_spare_every_study_gets_full_effort():
    efforts, _ = run(1000.0, 50, COST)
    assert set(efforts) == {Effort.FULL}
    assert len(efforts) == 50


def test_augmentation_goes_first_then_folds_then_models():
    for limit_s, lowest in ((900.0, Effort.FULL), (400.0, Effort.NO_AUGMENTATION), (180.0, Effort.ONE_FOLD)):
        efforts, seconds = run(limit_s, 80, COST)
        if limit_s < 800.0:
            assert max(efforts) >= lowest
        assert len(efforts) == 80
        assert seconds <= limit_s
    used = run(400.0, 80, COST)[0]
    assert used[0] == Effort.FULL
    assert Effort.NO_AUGMENTATION in used


def test_the_run_ends_in_time_even_when_not_every_study_fits():
    efforts, seconds = run(30.0, 100, COST)
    assert seconds <= 30.0
    assert 10 < len(efforts) < 100
    assert efforts[-1] == Effort.ONE_MODEL


def test_two_workers_are_counted():
    efforts, seconds = run(500.0, 80, COST, n_workers=2)
    assert set(efforts) == {Effort.FULL}
    assert seconds == 400.0


def test_a_slow_first_study_does_not_lower_the_effort_for_long():
    clock = Clock()
    budget = Budget(100.0, 100, clock=clock, reserve_s=0.0)
    clock.now += 20.0  # compiling, filling caches
    budget.finished(20.0, Effort.FULL)
    efforts = []
    for _ in range(20):
        efforts.append(budget.next_effort())
        clock.now += 0.1
        budget.finished(0.1, efforts[-1])
    assert efforts[0] > Effort.FULL
    assert set(efforts[2:]) == {Effort.FULL}


def test_a_clock_that_jumps_to_the_deadline_stops_the_run():
    clock = Clock()
    budget = Budget(3600.0, 10, clock=clock)
    assert not budget.is_over()
    clock.now += 3600.0
    assert budget.is_over()
    assert budget.remaining_s() < 0


def test_the_limit_counts_from_the_start_that_is_given():
    clock = Clock()
    budget = Budget(50.0, 10, clock=clock, reserve_s=0.0, start_s=clock.now - 20.0)
    assert budget.remaining_s() == 30.0


def test_a_study_given_up_says_nothing_of_what_studies_take():
    budget = Budget(1000.0, 10, clock=Clock())
    budget.finished(5.0, Effort.FULL)
    budget.gave_up()
    assert budget.n_left == 8
    assert budget.study_seconds(Effort.FULL) == 5.0


PRINT_AGE = """
import time
time.sleep(1.5)
from lumbar.workers.budget import process_start
print(time.monotonic() - process_start())
"""


def run_python(*command):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says when a process was started")
def test_a_process_knows_when_it_was_started():
    assert 1.5 <= float(run_python(sys.executable, "-c", PRINT_AGE)) < 60.0


def test_where_the_system_does_not_say_the_import_counts(monkeypatch):
    monkeypatch.setattr(budget_module, "Path", lambda name: os.devnull)
    assert process_start() == budget_module._IMPORTED_S


def test_what_another_program_did_in_this_process_before_does_not_count(monkeypatch):
    imported = budget_module._IMPORTED_S + 3600.0  # as if a shell had become Python by exec an hour later
    monkeypatch.setattr(budget_module, "_IMPORTED_S", imported)
    assert process_start() == imported


def test_a_reserve_is_kept_for_the_last_write():
    assert Budget(20.0, 1, clock=Clock()).remaining_s() == 15.0
    assert Budget(1.0, 1, clock=Clock()).remaining_s() == 0.5
    assert Budget(1000.0, 1, clock=Clock()).remaining_s() == 980.0
    assert Budget(30600.0, 1, clock=Clock()).remaining_s() == 30510.0


def test_a_study_that_shares_the_networks_needs_the_time_of_both():
    clock = Clock()
    budget = Budget(100.0, 10, clock=clock, reserve_s=0.0)
    for _ in range(2):
        budget.finished(20.0, Effort.ONE_MODEL)
    clock.now += 70.0
    assert not budget.is_over()
    assert budget.is_over(2)


def test_effort_says_what_it_drops():
    assert [e.uses_augmentation for e in Effort] == [True, False, False, False]
    assert [e.uses_all_folds for e in Effort] == [True, True, False, False]
    assert [e.uses_all_models for e in Effort] == [True, True, True, False]
    assert Effort.ONE_FOLD.title == "one fold"


# ---- members of an ensemble, one after another -------------------------------------------------------------------

N_MEMBERS = 11  # that can be left out of twelve
REST_S, MEMBER_S = 0.8, 0.6  # at one fold: whatever runs in any case, and each member


def member_names(count):
    return tuple(f"m{k}" for k in range(count))


def spared_of(share=MEMBER_S / (REST_S + MEMBER_S * (N_MEMBERS + 1))):
    return [Spared(name, share) for name in member_names(N_MEMBERS)]


def true_seconds(level):
    """What a study truly takes: twice for mirrored views, twice for two folds, less for each member left out."""
    folds = 2 if level.uses_all_folds else 1
    views = 2 if level.uses_augmentation else 1
    return REST_S + MEMBER_S * folds * views * (N_MEMBERS + 1 - len(level.left_out))


TIMES = tuple(true_seconds(level) for level in list(Effort)[:3])


def run_ensemble(limit_s, n_studies, speed=lambda number: 1.0, members=None, times=None):
    """Do studies until the budget says stop; the levels, and how much of the time was used."""
    clock = Clock()
    budget = Budget(limit_s, n_studies, clock=clock, reserve_s=0.0)
    budget.spare(spared_of() if members is None else members, TIMES if times is None else times)
    levels = []
    for number in range(n_studies):
        level = budget.next_effort()
        if budget.is_over():
            break
        seconds = true_seconds(level) * speed(number)
        clock.now += seconds
        budget.finished(seconds, level)
        levels.append(level)
    return levels, clock.now - 100.0


def test_members_go_one_after_another_in_their_order_and_the_run_ends_in_time():
    names = member_names(N_MEMBERS)
    for mean_s in (7.9, 6.9, 5.1, 3.2, 1.7):
        levels, seconds = run_ensemble(400 * mean_s, 400)
        assert len(levels) == 400, mean_s
        assert 0.93 * 400 * mean_s < seconds <= 400 * mean_s, mean_s  # no member is left out that need not be
        assert all(level.left_out == names[: len(level.left_out)] for level in levels)
        steady = {len(level.left_out) for level in levels[50:350]}
        fitting = N_MEMBERS + 1 - (mean_s - REST_S) / MEMBER_S
        assert max(abs(count - fitting) for count in steady) <= 2.0, (mean_s, steady)


def test_each_member_left_out_lowers_the_projected_time_by_what_it_costs():
    clock = Clock()
    budget = Budget(1e6, 100, clock=clock, reserve_s=0.0)
    budget.spare(spared_of())
    for _ in range(3):
        budget.finished(8.0, Effort.ONE_FOLD)
    out = [FewerMembers(member_names(count)) for count in range(1, N_MEMBERS + 1)]
    projected = [budget.projected_s(level) for level in (Effort.ONE_FOLD, *out)]
    assert projected[0] == 97 * 8.0
    np.testing.assert_allclose(np.diff(projected), -97 * MEMBER_S)


def test_members_come_back_when_the_machine_is_fast_again():
    levels, seconds = run_ensemble(8.2 * 600, 600, speed=lambda number: 3.0 if 40 <= number < 90 else 1.0)
    assert len(levels) == 600
    assert seconds <= 8.2 * 600
    counts = [len(level.left_out) for level in levels]
    assert max(counts[40:140]) >= 4  # the slow studies
    assert np.mean(counts[-200:]) < np.mean(counts[60:160]) - 2


def test_a_member_that_costs_more_than_the_manifest_says_does_not_delay_the_end():
    for share in (0.01, 0.2):
        levels, seconds = run_ensemble(400 * 4.0, 400, members=spared_of(share))
        assert len(levels) >= 399
        assert seconds <= 400 * 4.0


def test_with_slack_no_member_is_left_out():
    levels, _ = run_ensemble(400 * 8.3, 400)
    assert {level.left_out for level in levels} == {()}


def test_a_bundle_without_seconds_leaves_out_in_one_step_what_it_can_spare():
    levels, _ = run_ensemble(400 * 4.0, 400, members=[Spared(name) for name in ("a", "b")], times=UNKNOWN_TIMES)
    assert {level.left_out for level in levels} <= {(), ("a", "b")}
    budget = Budget(1e6, 100, clock=Clock(), reserve_s=0.0)
    budget.spare([Spared("axial_subarticular")])
    budget.finished(10.0, Effort.ONE_FOLD)
    assert budget.study_seconds(FewerMembers(("axial_subarticular",))) == 10.0 * 0.6
    assert budget.study_seconds(Effort.ONE_MODEL) == 10.0 * 0.6


def test_a_level_with_members_left_out_names_them():
    level = FewerMembers(("b_axial", "a_wide"))
    assert level.title == "one fold, without b_axial, a_wide"
    assert level.skips(["a_wide", "b_axial", "c"]) == {"a_wide", "b_axial"}
    assert Effort.ONE_MODEL.skips(["a", "b"]) == {"a", "b"}
    assert Effort.ONE_FOLD.skips(["a", "b"]) == frozenset()
