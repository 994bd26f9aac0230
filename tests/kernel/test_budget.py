import os
import subprocess
import sys

import pytest

from lumbar.errors import CohortError
from lumbar.workers import budget as budget_module
from lumbar.workers.budget import Budget, Effort, parse_time_limit, process_start


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


def test_effort_says_what_it_drops():
    assert [e.uses_augmentation for e in Effort] == [True, False, False, False]
    assert [e.uses_all_folds for e in Effort] == [True, True, False, False]
    assert [e.uses_all_models for e in Effort] == [True, True, True, False]
    assert Effort.ONE_FOLD.title == "one fold"
