"""Output that nobody reads any more (``| head``): a command ends without a word, with the status of SIGPIPE."""

import json
import os
import subprocess
import sys

import pytest

from lumbar.io.streams import READER_GONE, EndingStream, ReaderGone

pytestmark = pytest.mark.usefixtures("unmeasured_children")


def status_and_errors(*words, **options):
    """Of a command whose standard output is a pipe that has no reader."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        done = subprocess.run(
            [sys.executable, "-m", *map(str, words)], stdout=writer, stderr=subprocess.PIPE, text=True,
            env=environment, **options,
        )  # fmt: skip
    finally:
        os.close(writer)
    return done.returncode, done.stderr


@pytest.mark.parametrize("package", ["lumbar", "lumbar_train", "lumbar_phantom", "lumbar_publish"])
def test_help_that_nobody_reads_ends_quietly(package):
    assert status_and_errors(package, "--help") == (READER_GONE, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_the_status_of_a_run_ends_quietly(tmp_path, monkeypatch, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    (tmp_path / "recipe.json").write_text(json.dumps({"name": "demo", "stages": {}}))
    assert status_and_errors("lumbar_train", "train", "--status", tmp_path) == (READER_GONE, "")


def test_a_stream_without_reader_ends_the_command_and_then_takes_what_is_left():
    reader, writer = os.pipe()
    os.close(reader)
    stream = EndingStream(os.fdopen(writer, "w", encoding="utf-8"))
    assert stream.write("kept back\n") == 10
    with pytest.raises(ReaderGone) as gone:
        stream.flush()
    assert gone.value.code == READER_GONE == 141
    stream.write("nobody reads this\n")
    stream.flush()
    stream.close()


def test_another_failure_of_a_stream_is_told_as_ever():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    with open("/dev/full", "w", encoding="utf-8", buffering=1) as full:
        with pytest.raises(OSError, match="No space left"):
            EndingStream(full).write("a line\n")
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
