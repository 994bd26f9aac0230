"""One Ctrl-C, SIGTERM or closed terminal ends a training with one line, and every fit can be gone on with."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lumbar_train.engine import interrupts
from train_processes import environment
from train_toy_fit import TOY, ToyDataset, run_toy

pytestmark = pytest.mark.usefixtures("unmeasured_children")

SCRIPT = Path(__file__).parents[1] / "support/train_signals.py"
HANGING = SCRIPT.with_name("hanging_work.py")
NOTHING_BEGUN = "no fit has begun; run the same command again, and studies that are decoded stay decoded"
GO_ON = (
    "keeps the finished fits and the last checkpoint of the others; to go on run the same command again with --resume"
)


@contextmanager
def begun(out: Path, how: str, jobs: int, folds):
    """The command in a process group of its own, once the fits of some folds run."""
    command = [sys.executable, str(SCRIPT), "train", "--data", "d", "--out", str(out), "--jobs", str(jobs)]
    process = subprocess.Popen(
        command, env=environment() | {"HOW": how}, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 400
        while not all((out / f"axial_xy/fold{fold}/begun").exists() for fold in folds):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def members(group: int) -> list[int]:
    """The processes of a group that still run."""
    running = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            running.append(int(path.parent.name))
    return running


def all_end(group: int) -> bool:
    """Whether a group empties; multiprocessing's tracker of resources ends a moment after the process it serves."""
    deadline = time.monotonic() + 60
    while members(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    return members(group) == []


@pytest.mark.parametrize(
    ("number", "to_all", "jobs", "how"),
    [
        (signal.SIGINT, True, 2, "steps"),  # Ctrl-C in a terminal
        pytest.param(signal.SIGINT, True, 2, "loaders", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, True, 1, "loaders", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, False, 2, "steps", marks=pytest.mark.slow),  # kill, or a queueing system
        pytest.param(signal.SIGHUP, True, 1, "steps", marks=pytest.mark.slow),  # the terminal is closed
        pytest.param(signal.SIGINT, True, 2, "long step", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, True, 2, "stuck", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, False, 1, "stuck", marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_every_process_with_one_line_that_says_how_to_go_on(number, to_all, jobs, how, tmp_path):
    folds = range(jobs)
    with begun(tmp_path, how, jobs, folds) as process:
        time.sleep(0.5)
        (os.killpg if to_all else os.kill)(process.pid, number)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1
        assert all_end(process.pid)
    reason = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}.get(number, "the terminal was closed")
    assert errors == f"lumbar_train: {reason}: {tmp_path} {GO_ON}\n"
    assert not (tmp_path / "axial_xy" / f"fold{jobs}").exists(), "the next fit has not begun"
    for fold in folds:
        state = torch.load(tmp_path / f"axial_xy/fold{fold}/checkpoint.pt", weights_only=False)
        assert state["counters"][1] >= 1, "saved after a step"


def test_a_fold_that_fails_stops_the_others_at_once_and_they_can_be_gone_on_with(tmp_path):
    with begun(tmp_path, "failing", 2, [1]) as process:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1
        assert all_end(process.pid)
    assert errors == "lumbar_train: fold 0: loss is nan, expected a finite number\n"
    assert not (tmp_path / "axial_xy/fold2").exists()
    assert (tmp_path / "axial_xy/fold1/checkpoint.pt").is_file()


@pytest.mark.parametrize("work", ["cache", pytest.param("baseline", marks=pytest.mark.slow)])
def test_one_ctrl_c_ends_decoding_and_the_baselines_fits_long_before_what_runs_would_be_done(work, tmp_path):
    """Each piece of work lasts a quarter of an hour; two run, four wait."""
    notes = tmp_path / "begun"
    notes.mkdir()
    command = [sys.executable, str(HANGING), "train", "--data", str(tmp_path), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        command, env=environment() | {"WORK": work, "BEGUN": str(notes)}, start_new_session=True,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 400
        while len(list(notes.iterdir())) < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1
        assert all_end(process.pid)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    lines = [line for line in errors.splitlines() if not line.startswith("6 studies to do")]
    assert lines == [f"lumbar_train: interrupted: {NOTHING_BEGUN}"]
    assert len(list(notes.iterdir())) == 2, "no further piece of work begins"


def test_a_process_of_a_pool_that_is_told_twice_to_end_still_saves_its_fit(monkeypatch):
    """Executors tell all their processes once more when the first has ended (concurrent.futures.process)."""
    monkeypatch.setattr(interrupts.os, "_exit", sys.exit)
    for name, value in {"is_worker": True, "reason": None}.items():
        monkeypatch.setattr(interrupts._State, name, value)

    def fit(is_late):
        with interrupts.ends_between_steps() as saved:
            interrupts._handle(signal.SIGTERM, None)
            monkeypatch.setattr(interrupts._State, "is_late", is_late)  # whether the step takes too long
            interrupts._handle(signal.SIGTERM, None)
            saved()

    with pytest.raises(KeyboardInterrupt):
        fit(is_late=False)
    monkeypatch.setattr(interrupts._State, "reason", None)
    with pytest.raises(SystemExit):
        fit(is_late=True)


class Interrupting(ToyDataset):
    """Sends this process a signal while one of its samples is made."""

    def sample(self, index, rng):
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGINT)
        return ToyDataset(self.n).sample(index, rng)


def test_a_fit_called_from_a_program_is_saved_before_the_interrupt_and_ends_with_the_same_weights(tmp_path):
    whole = run_toy(tmp_path / "whole", ToyDataset())
    config = replace(TOY, checkpoint_seconds=1e9)
    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path / "fit", Interrupting(die_after=10), config)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not interrupts.is_asked_to_end()
    again = run_toy(tmp_path / "fit", ToyDataset(), config, resume=True)
    assert again.last.read_bytes() == whole.last.read_bytes()


def test_an_interrupt_that_a_fit_has_answered_does_not_end_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr(interrupts, "STEP_S", 0.2)
    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path / "first", Interrupting(die_after=10), replace(TOY, checkpoint_seconds=1e9))
    with interrupts.ends_between_steps():
        time.sleep(0.5)  # longer than the step of the first fit had
    assert not interrupts.is_asked_to_end()
