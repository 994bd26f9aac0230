from lumbar.workers import watchdog
from lumbar.workers.watchdog import ReadingTimes, networks_limit_s, retiring_limit_s


def test_a_reading_gets_at_least_five_minutes_and_twice_that_before_any_is_done():
    times = ReadingTimes()
    assert times.limit_s() == 600.0
    times.done(2.0, is_first=True)
    times.done(2.0, is_first=False)
    assert times.limit_s() == 300.0


def test_a_disk_that_is_slow_for_all_raises_the_limit():
    times = ReadingTimes()
    for _ in range(20):
        times.done(60.0, is_first=False)
    assert times.limit_s() == watchdog.READING_MULTIPLE * 60.0


def test_first_readings_in_which_decoders_were_compiled_do_not_raise_the_limit():
    times = ReadingTimes()
    times.done(240.0, is_first=True)
    times.done(1.0, is_first=False)
    times.done(240.0, is_first=True)
    assert times.limit_s() == 300.0


def test_networks_get_half_an_hour_or_many_times_what_a_study_takes():
    assert networks_limit_s(None) == 1800.0
    assert networks_limit_s(2.0) == 1800.0
    assert networks_limit_s(100.0) == 5000.0
    assert retiring_limit_s(None) == 60.0
    assert retiring_limit_s(100.0) == 1000.0
