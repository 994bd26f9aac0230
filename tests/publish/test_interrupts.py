"""Sealing and publishing when they are stopped, and where nothing can be written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lumbar.bundle.manifest import FILE_NAME
from lumbar_publish import cli
from lumbar_publish.names import Layout
from publish.kaggle_server import wait_until

SEAL = """\
import pathlib, sys, time
from lumbar_publish import cli
from lumbar_publish.names import Layout
note = pathlib.Path(sys.argv[2])
def sample(folder):
    note.touch()
    time.sleep(60)
sys.exit(cli.main(Layout(pathlib.Path(sys.argv[1])), sample, []))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_process_group_ends_sealing_with_one_line_and_changes_nothing(
    layout: Layout, tmp_path: Path, number: signal.Signals
) -> None:
    before = layout.lock.read_bytes()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", SEAL, str(layout.root), str(tmp_path / "begun")],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert wait_until((tmp_path / "begun").exists, 300)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.count("\n") == 1
    assert errors.startswith("error: ")
    assert "run the same command again" in errors
    assert layout.lock.read_bytes() == before
    assert not layout.sealed.exists()
    assert not list(layout.root.glob("dist/.dataset.*"))


UPLOAD = """\
import pathlib, sys
from lumbar_publish import cli
from lumbar_publish.kaggle import client
from lumbar_publish.names import Layout
client._PROCESS = pathlib.Path(sys.argv[2])
upload = lambda *_: client.Client().act("datasets", "create", limit_s=900.0, progress=True)
sys.exit(cli.main(Layout(pathlib.Path(sys.argv[1])), upload, []))
"""
CLIENT = """\
import os, pathlib, sys, time
print("Starting upload for file weights.zip", flush=True)
pathlib.Path(__file__).with_suffix(".pid").write_text(str(os.getpid()))
time.sleep(900)
"""


def test_one_ctrl_c_ends_an_upload_and_the_client_that_sends_it(layout: Layout, tmp_path: Path) -> None:
    """The client has a process group of its own, so that the signal does not reach it."""
    client = tmp_path / "client.py"
    client.write_text(CLIENT)
    process = subprocess.Popen(
        [sys.executable, "-c", UPLOAD, str(layout.root), str(client)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    note = client.with_suffix(".pid")
    assert wait_until(lambda: note.exists() and note.read_text() != "", 300)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    first, last = errors.splitlines()
    assert first == "Starting upload for file weights.zip"
    assert last.startswith("error: interrupted: ")
    assert wait_until(lambda: not Path(f"/proc/{note.read_text()}").exists(), 60)


def test_a_repository_with_a_space_and_an_umlaut_in_its_path_is_sealed(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "run_chain", lambda *_: None)
    root = tmp_path / "Jürgens Kästchen (neu)"
    layout.root.rename(root)
    assert cli.main(Layout(root), lambda folder: None, []) == 0, capsys.readouterr().err
    assert (root / "dist" / "dataset" / FILE_NAME).is_file()


def test_a_place_that_cannot_be_written_is_one_line(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "run_chain", lambda *_: None)
    (layout.root / "dist").write_text("a file where the folder should be")
    assert cli.main(layout, lambda folder: None, []) == 1
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "cannot be written" in errors
