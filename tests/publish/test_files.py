"""A sealed folder is the former one or the new one, whatever happens while it is made."""

import os
import signal
import subprocess
import sys

import pytest

from lumbar.errors import ManifestError
from lumbar_publish.files import replaced_folder, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def sealed(tmp_path):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "old").write_text("old")
    return tmp_path / "dataset"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_goes_wrong_inside_changes_nothing(tmp_path, sealed, error):
    def seal():
        with replaced_folder(sealed) as folder:
            (folder / "half").write_text("half")
            raise error

    if isinstance(error, OSError):
        with pytest.raises(ManifestError, match=r"dataset: cannot be written \(No space left on device\)") as caught:
            seal()
        assert "what was there before is untouched" in str(caught.value)
    else:
        with pytest.raises(KeyboardInterrupt):
            seal()
    assert names(tmp_path) == ["dataset"]
    assert names(sealed) == ["old"]


KILLED = """
import os, signal, sys
from pathlib import Path
from lumbar_publish import files
target, step = Path(sys.argv[1]), sys.argv[2]
kill = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
with files.replaced_folder(target) as folder:
    (folder / "new").write_text("new")
    if step == "inside":
        kill()
    if step == "wait":
        print("ready", flush=True)
        sys.stdin.read()
    real = Path.rename
    Path.rename = lambda self, other: kill() if self == folder else real(self, other)
"""


def start(sealed, step):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED, str(sealed), step]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.mark.parametrize("step", ["inside", "between"])
def test_a_kill_at_any_moment_loses_nothing(tmp_path, sealed, step):
    with start(sealed, step) as process:
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert names(tmp_path) != ["dataset"]
    with pytest.raises(ZeroDivisionError), replaced_folder(sealed):
        raise ZeroDivisionError
    assert names(tmp_path) == ["dataset"]
    assert names(sealed) == ["old"]


def test_a_run_at_work_is_left_alone(tmp_path, sealed):
    with start(sealed, "wait") as process:
        assert process.stdout.readline() == b"ready\n"
        with pytest.raises(ZeroDivisionError), replaced_folder(sealed):
            raise ZeroDivisionError
        assert len(names(tmp_path)) == 2
        process.kill()


def test_an_unchanged_file_keeps_its_time(tmp_path):
    write_text(tmp_path / "a" / "b", "text")
    os.utime(tmp_path / "a" / "b", (1, 1))
    write_text(tmp_path / "a" / "b", "text")
    assert (tmp_path / "a" / "b").stat().st_mtime == 1
    assert names(tmp_path / "a") == ["b"]
