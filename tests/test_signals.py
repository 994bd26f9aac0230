"""From a signal to the end of a command there are five seconds at most, whatever it is doing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lumbar.io import signals
from lumbar_train.engine import interrupts

pytestmark = pytest.mark.usefixtures("unmeasured_children")

SCRIPT = Path(__file__).parent / "support" / "stuck_command.py"
MOST_S = 5.0
COMMANDS = {
    "lumbar": ["inspect", "."],
    "lumbar_phantom": ["--out", "cohort", "--studies", "1"],
    "lumbar_train": ["train", "--data", ".", "--out", "run"],
    "build_dataset": [],
    "dry-run": ["--data", "."],
    "train": ["--recipe", "demo"],
}


def test_the_times_that_a_signal_leaves_a_command_are_five_seconds_together():
    assert interrupts.STEP_S < interrupts.STOP_S < signals.GRACE_S
    assert signals.GRACE_S + signals.TIDY_S <= MOST_S


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("program", COMMANDS)
def test_a_command_that_answers_no_signal_is_ended_with_one_line_and_with_what_it_started(program, tmp_path):
    """Its time is cut to a fifth of a second; without an end of its own it would last for ever."""
    begun = tmp_path / "begun"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "BEGUN": str(begun)}
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), program, *COMMANDS[program]],
        cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while not (begun.exists() and begun.read_text()):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 1
    assert errors.count("\n") == 1
    assert "interrupted: " in errors
    assert "run the same command again" in errors
    while is_alive(int(begun.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_signal_that_the_caller_ignores_stays_ignored():
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signals.in_order(lambda: os.kill(os.getpid(), signal.SIGHUP) or 7, print) == 7
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)


@pytest.mark.parametrize(("name", "reason"), [("SIGINT", "interrupted"), ("SIGTERM", "terminated")])
def test_a_call_from_a_program_answers_a_signal_and_gives_its_handlers_back(name, reason):
    number, told = getattr(signal, name), []
    former = signal.getsignal(number)
    assert signals.in_order(lambda: os.kill(os.getpid(), number) or time.sleep(60) or 0, told.append) == 1
    assert told == [reason]
    assert signal.getsignal(number) is former


FORKING = """\
import os, signal, time
from lumbar.io import signals

signals.GRACE_S = 0.2


def work():
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    time.sleep(1.0)
    return 0


signals.run_as_process(lambda: signals.in_order(work, print))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_signal_to_a_forked_copy_does_not_end_the_command():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", FORKING], env=environment, capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr, done.returncode) == ("7\n", "", 0)
