"""The command as a user meets it: what it says, and how it ends when it is stopped or cannot write."""

import os
import resource
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from lumbar_phantom.__main__ import main

pytestmark = pytest.mark.usefixtures("unmeasured_children")


def start(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    if "preexec_fn" in options:  # a process that may write no large file cannot write what coverage measured
        environment = {name: value for name, value in environment.items() if not name.startswith("COVERAGE_PROCESS")}
    command = [sys.executable, "-m", "lumbar_phantom", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "number"), [(1, signal.SIGTERM), (2, signal.SIGINT)])
def test_a_signal_to_the_process_group_ends_a_cohort_with_one_line(tmp_path, workers, number):
    root = tmp_path / "Jürgens Kohorte"
    process = start("--out", root, "--studies", 50, "--workers", workers, start_new_session=True)
    end = time.monotonic() + 300
    while not list(root.glob("train_images/*/*/*.dcm")) and time.monotonic() < end:
        time.sleep(0.2)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in errors
    last = errors.splitlines()[-1]
    assert last.startswith("error: ")
    assert "run the same command again" in last
    assert not (root / "train.csv").exists()


def test_a_cohort_lies_in_a_folder_with_a_space_and_an_umlaut(tmp_path, capsys):
    root = tmp_path / "Jürgens Daten" / "neu 1"
    assert main(["--out", str(root), "--studies", "1", "--split", "test", "--pitfalls", "none"]) == 0
    assert pd.read_csv(root / "test_label_coordinates.csv").condition.nunique() == 5
    errors = capsys.readouterr().err
    assert errors.splitlines()[0] == "1 study to do"
    assert "\r" not in errors


def test_a_full_disk_ends_in_one_line(tmp_path):
    """A limit on the size of a file stands for the disk: the system refuses the write in the same way."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    process = start("--out", tmp_path / "c", "--studies", 1, "--syntax", "explicit", preexec_fn=limit)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "cannot be written" in lines[0]
    assert "disk is full" in lines[0]
    assert "Traceback" not in errors
