"""Whatever goes wrong while a file is written, what stood there stands, and nothing else lies beside it."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from lumbar.errors import CohortError, ManifestError
from lumbar.io import files
from lumbar.io.files import atomic_file, atomic_path, check_writable, write_atomically

UNTOUCHED = "what was there before is untouched"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """As in a new process: no folder has been looked through yet."""
    monkeypatch.setattr(files, "_cleaned_folders", set())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_content_is_flushed_before_it_takes_the_name_and_the_folder_after(tmp_path, monkeypatch):
    calls = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor):
        calls.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        real_sync(descriptor)

    def replace(source, target):
        calls.append("replace")
        real_replace(source, target)

    monkeypatch.setattr("os.fsync", sync)
    monkeypatch.setattr("os.replace", replace)
    write_atomically(tmp_path / "a", "text")
    write_atomically(tmp_path / "b", b"bytes", sync="file")
    write_atomically(tmp_path / "c", b"bytes", sync="none")
    assert calls == ["file", "replace", "folder", "file", "replace", "replace"]
    assert names(tmp_path) == ["a", "b", "c"]


def test_a_new_file_may_be_read_by_whom_the_mask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


FULL = OSError(28, "No space left on device")


def failing(call, monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    if call == "write":
        monkeypatch.setattr(files._TrackedFile, "write", fail)
    else:
        monkeypatch.setattr(f"os.{call}", fail)


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize("error", [FULL, OSError(122, "Disk quota exceeded"), OSError(5, "Input/output error")])
def test_a_disk_that_fails_at_any_step_costs_nothing(tmp_path, monkeypatch, call, error):
    path = tmp_path / "file"
    path.write_text("old")
    with monkeypatch.context() as patch:
        failing(call, patch, error)
        with pytest.raises(ManifestError, match=rf"file: cannot be written \({error.strerror}\), .*{UNTOUCHED}"):
            write_atomically(path, "new", ManifestError)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_an_interrupt_at_any_step_leaves_nothing_behind(tmp_path, monkeypatch, step):
    (tmp_path / "file").write_text("old")
    with monkeypatch.context() as patch:
        failing(step, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            write_atomically(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("writer", [atomic_file, atomic_path])
def test_a_block_that_raises_changes_nothing(tmp_path, writer):
    (tmp_path / "file").write_text("old")

    def write():
        with writer(tmp_path / "file") as target:
            target.write(b"half") if writer is atomic_file else target.write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("how", ["in place", "as another file"])
def test_a_library_may_write_the_path_by_itself(tmp_path, how):
    with atomic_path(tmp_path / "file") as temporary:
        assert temporary.parent == tmp_path
        if how == "as another file":
            (tmp_path / "own").write_text("new")
            os.replace(tmp_path / "own", temporary)
        else:
            temporary.write_text("new")
    assert (tmp_path / "file").read_text() == "new"
    assert names(tmp_path) == ["file"]


def test_a_library_that_hides_why_a_write_failed_is_seen_through(tmp_path, monkeypatch):
    monkeypatch.setattr(files.io, "BufferedWriter", lambda raw: raw)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)

    def library(file):
        try:
            file.write(b"x")
        except OSError as error:
            raise RuntimeError("unexpected pos 768 vs 662") from error

    def full(self, data):
        self.failure = FULL
        raise FULL

    monkeypatch.setattr(files._TrackedFile, "write", full)
    with (
        pytest.raises(CohortError, match=r"No space left on device.*the disk is full"),
        atomic_file(tmp_path / "f") as f,
    ):
        library(f)
    assert names(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_devices_pipes_and_folders_are_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    os.symlink("/dev/full", tmp_path / "link")
    for name, what in (("pipe", "device or pipe"), ("link", "device or pipe"), ("folder", "folder")):
        for write in (check_writable, lambda path: write_atomically(path, "x")):
            with pytest.raises(CohortError, match=f"{name}: is a {what}, expected a file's name"):
                write(tmp_path / name)
    assert os.path.islink(tmp_path / "link")


def test_a_link_to_a_file_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("old")
    os.symlink("there/file", tmp_path / "link")
    write_atomically(tmp_path / "link", "new")
    assert os.path.islink(tmp_path / "link")
    assert (tmp_path / "there" / "file").read_text() == "new"
    assert names(tmp_path / "there") == ["file"]


def test_text_that_no_encoding_takes_costs_no_file(tmp_path):
    write_atomically(tmp_path / "file", "caf\udce9")
    assert (tmp_path / "file").read_text() == "caf\\udce9"


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "a b\nc", "caf\udce9"])
def test_any_name_that_the_system_takes_is_written(tmp_path, name):
    write_atomically(tmp_path / name, "text")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["x" * 256, "a\0b", "no/where"])
def test_a_name_that_cannot_be_is_refused(tmp_path, name):
    for write in (check_writable, lambda path: write_atomically(path, "x")):
        with pytest.raises(CohortError, match="cannot be written"):
            write(tmp_path / name)
    assert names(tmp_path) == []


# ---- killed writers -------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from lumbar.io.files import atomic_file
with atomic_file(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    print("ready", flush=True)
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()
"""


def start(path, how):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED, str(path), how]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_what_a_killed_writer_left_is_removed_by_the_next_and_what_a_living_one_writes_is_not(tmp_path):
    path = tmp_path / "submission.csv"
    path.write_text("old")
    with start(path, "kill") as killed:
        killed.wait()
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(names(tmp_path)) == 2
    with start(tmp_path / "other", "wait") as living:
        assert living.stdout.readline() == b"ready\n"
        (tmp_path / ".submission.csv.tmp").write_text("of an earlier version")
        (tmp_path / ".tmp-mine").write_text("not ours")
        write_atomically(path, "new")
        assert len(names(tmp_path)) == 3
        living.communicate(b"")
    assert living.returncode == 0
    assert names(tmp_path) == [".tmp-mine", "other", "submission.csv"]
    assert (tmp_path / "other").read_text() == "half"


def test_without_locks_only_old_leftovers_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    for name, age_s in ((".tmp-file-0123456789ab", 10), (".tmp-file-ba9876543210", 7200)):
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    write_atomically(tmp_path / "file", "new")
    assert names(tmp_path) == [".tmp-file-0123456789ab", "file"]


def test_many_writers_of_one_file_leave_one_of_theirs_and_nothing_else(tmp_path):
    def work(k):
        for _ in range(20):
            files._cleaned_folders.clear()
            write_atomically(tmp_path / "file", str(k) * 1000)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    text = (tmp_path / "file").read_text()
    assert text in {str(k) * 1000 for k in range(4)}
    assert names(tmp_path) == ["file"]


SMALL_DISK = """
import sys
from pathlib import Path
from lumbar.errors import LumbarError
from lumbar.io.files import write_atomically
folder = Path(sys.argv[1])
(folder / "file").write_text("old")
try:
    write_atomically(folder / "file", b"x" * 200_000)
except LumbarError as error:
    print(error)
print((folder / "file").read_text(), [path.name for path in folder.iterdir()])
"""


def test_a_disk_that_is_truly_full(tmp_path):
    (tmp_path / "disk").mkdir()
    mount = f"mount -t tmpfs -o size=64k none '{tmp_path}/disk'"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-c", SMALL_DISK]
    done = subprocess.run(
        [*command, str(tmp_path / "disk")], env=environment, capture_output=True, text=True, check=True
    )
    refusal, state = done.stdout.splitlines()
    assert refusal.endswith(
        f"file: cannot be written (No space left on device), expected a writable file: the disk is full; {UNTOUCHED}"
    )
    assert state == "old ['file']"
