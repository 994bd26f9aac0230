import io
import re
import threading
from pathlib import Path

import pytest

from lumbar.io import progress as module
from lumbar.io.progress import Progress, duration

ROOT = Path(__file__).resolve().parents[2]


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def lines_of(total, seconds_each, step=0.5, left_s=None):
    """What is written where there is no terminal, while ``update`` is called twice a second."""
    clock, lines = Clock(), []
    with Progress(total, "study", write=lines.append, stream=io.StringIO(), clock=clock) as progress:
        while clock.now < total * seconds_each:
            clock.now += step
            progress.update(min(total, int(clock.now / seconds_each)), left_s)
    return lines


def test_without_a_terminal_nine_hours_give_a_line_a_minute():
    lines = lines_of(720, 45.0)
    assert 530 <= len(lines) <= 545
    assert lines[0] == "720 studies to do; the first one tells how long all take"
    assert lines[1].startswith("1 of 720 studies done after 45 s, 719 left: about 8 h 59 min, until about ")
    assert lines[-1] == "720 of 720 studies done in 9 h 0 min"
    assert all(" left: about " in line for line in lines[1:-1])


def test_a_long_first_part_gives_lines_without_an_estimate():
    lines = lines_of(2, 200.0)
    assert lines[1:4] == [f"0 of 2 studies done after {text}" for text in ("60 s", "2 min", "3 min")]
    assert lines[4].startswith("1 of 2 studies done after 3 min, 1 left: about 3 min")


def test_the_callers_estimate_is_taken_where_there_is_one():
    assert "about 2 h 0 min" in lines_of(10, 5.0, left_s=7200.0)[1]


def test_short_works_give_few_lines():
    assert lines_of(3, 1.0)[0] == "3 studies to do; the first one tells how long all take"
    assert len(lines_of(3, 1.0)) == 3
    assert lines_of(1, 1.0) == ["1 study to do", "1 of 1 study done in 1 s"]


def test_on_a_terminal_there_is_one_bar_without_a_guess_at_the_start():
    clock, terminal, lines = Clock(), Terminal(), []
    with Progress(4, "study", write=lines.append, stream=terminal, clock=clock) as progress:
        for second in range(1, 41):
            clock.now = float(second)
            progress.update(second // 10)
    shown = terminal.getvalue()
    assert lines == []
    assert shown.count("\n") == 1  # the end of the one bar
    assert "00:00" not in shown
    assert "about 0 " not in shown
    assert "2 of 4 studies, 2 left: about 20 s" in shown
    assert "3 left: about 30 s" in shown
    assert shown.count("\r") < 20  # not redrawn at every look


def test_a_bar_is_drawn_a_few_times_a_second_however_fast_the_parts_are(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # a narrow terminal would cut the note
    monkeypatch.setenv("LINES", "40")
    clock, terminal = Clock(), Terminal()
    with Progress(1000, "step", title="axial_xy {fold0}", is_part=True, stream=terminal, clock=clock) as progress:
        for step in range(1, 1001):
            clock.now = step / 1000
            progress.update(step, note=f"loss {step}")
    shown = terminal.getvalue()
    assert shown.count("axial_xy {fold0}: ") < 15
    assert "loss 1000" in shown
    assert "\n" not in shown, "the bar of a part is removed at its end"


def test_a_part_of_a_longer_work_has_a_line_a_minute_and_no_others():
    clock, lines = Clock(), []
    shown = Progress(
        100, "step", title="fold 0", n_before=40, is_part=True, write=lines.append, stream=io.StringIO(), clock=clock
    )
    with shown:
        for step in range(41, 101):
            clock.now += 3.0
            shown.update(step)
    assert len(lines) == 2
    assert lines[0].startswith("fold 0: 60 of 100 steps done after 60 s, 40 left: about 2 min, until about ")


def test_a_part_that_takes_minutes_leaves_its_lines_while_nobody_calls(monkeypatch):
    monkeypatch.setattr(module, "LINE_S", 0.02)
    monkeypatch.setattr(module, "_DRAW_S", 0.02)
    lines, three = [], threading.Event()

    def write(line):
        lines.append(line)
        if len(lines) == 4:
            three.set()

    with Progress(2, "fit", title="baseline", write=write, stream=io.StringIO()):
        assert three.wait(30)
    n_lines = len(lines)
    assert lines[0] == "baseline: 2 fits to do; the first one tells how long all take"
    assert all(line.startswith("baseline: 0 of 2 fits done after ") for line in lines[1:])
    assert not three.wait(0) or len(lines) == n_lines, "nothing is written after the end"


def test_each_counts_a_part_once_the_next_is_asked_for():
    lines = []
    progress = Progress(3, "study", title="evaluate", write=lines.append, stream=io.StringIO())
    assert [(part, progress.n_done) for part in progress.each("abc")] == [("a", 0), ("b", 1), ("c", 2)]
    assert lines[-1] == "evaluate: 3 of 3 studies done in 1 s"


def test_a_line_of_the_work_stands_on_standard_output(capsys):
    with Progress(2, "fit", stream=Terminal()) as progress:
        progress.say("the first fit: loss 0.5")
    with Progress(2, "fit", stream=io.StringIO()) as progress:
        progress.say("the second")
    assert capsys.readouterr().out == "the first fit: loss 0.5\nthe second\n"


def test_every_bar_of_the_packages_is_this_one():
    """A bar of tqdm's own writes many times a second into a log, and begins with an end at 00:00."""
    allowed = {"kernel/lumbar/io/progress.py", "kernel/lumbar/__main__.py", "src/lumbar_train/engine/process_pool.py"}
    using = {
        path.relative_to(ROOT).as_posix()
        for folder in ("kernel", "src")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"^\s*(from|import) (tqdm|rich|alive_progress)", path.read_text("utf-8"), re.M)
    }
    assert using <= allowed


def test_nothing_is_shown_where_nothing_is_asked_for():
    lines = []
    with Progress(2, "study", is_shown=False, write=lines.append) as progress:
        progress.update(2)
    assert lines == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (59.6, "60 s"), (99, "99 s"), (100, "2 min"), (5940, "99 min"), (6000, "1 h 40 min"),
     (32400, "9 h 0 min")],
)  # fmt: skip
def test_durations_are_said_as_people_say_them(seconds, text):
    assert duration(seconds) == text
