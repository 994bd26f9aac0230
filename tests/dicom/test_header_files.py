"""What is opened, how much of it is read and how large it may become."""

import os
import socket
import subprocess
import sys
import zlib

import numpy as np
import pytest

from dicom_writer import DEFLATED, EXPLICIT, element, meta, native_file, noisy_slice
from lumbar.dicom import read_header, read_series, read_slice
from lumbar.dicom.header import parse, read_bytes
from lumbar.dicom.limits import MAX_FILE_BYTES, MAX_INFLATED_PER_BYTE, MIN_INFLATED_BYTES
from lumbar.dicom.parsing import files as _files
from lumbar.dicom.parsing.files import reread
from lumbar.errors import DicomError

CALLS = (read_header, read_slice, lambda path: read_bytes(path, 100))


def assert_refused(path, text):
    for call in CALLS:
        with pytest.raises(DicomError) as caught:
            call(path)
        assert str(caught.value) == f"{path}: {text}"


def test_pipes_folders_sockets_and_devices_are_refused_without_waiting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket may not be long
    os.mkfifo("pipe.dcm")
    assert_refused("pipe.dcm", "found a FIFO, expected a regular file")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.dcm")
        assert_refused("socket.dcm", "found a socket, expected a regular file")
    assert_refused(str(tmp_path), "found a directory, expected a regular file")
    for device in ("/dev/null", "/dev/zero"):
        assert_refused(device, "found a character device, expected a regular file")
    (tmp_path / "1.dcm").write_bytes(native_file(noisy_slice((6, 5))))
    os.symlink("pipe.dcm", "link.dcm")
    series = read_series(tmp_path)
    assert len(series.stacks[0].volume) == 1
    assert sum("expected a regular file" in line for line in series.problems) == 3


def test_a_pipe_with_a_writer_is_refused_and_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.dcm")
    with open(tmp_path / "pipe.dcm", "r+b", buffering=0) as writer:
        writer.write(b"abc")
        assert_refused(tmp_path / "pipe.dcm", "found a FIFO, expected a regular file")
        assert os.read(writer.fileno(), 9) == b"abc"


def test_a_sparse_file_of_5_gb_is_refused(tmp_path):
    with open(tmp_path / "1.dcm", "wb") as file:
        file.write(native_file(noisy_slice((6, 5))))
        file.truncate(5 << 30)
    assert_refused(tmp_path / "1.dcm", f"found {5 << 30} bytes, expected at most {MAX_FILE_BYTES}")


def test_no_memory_for_a_file_is_a_refusal(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    path = tmp_path / "1.dcm"
    path.write_bytes(native_file(noisy_slice((6, 5))))
    monkeypatch.setattr(_files, "fresh_bytes", fail)
    with pytest.raises(DicomError, match=r"found no memory for \d+ bytes, expected fewer"):
        read_slice(path)


def deflated(n_bytes):
    deflater = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    body = b"".join(deflater.compress(bytes(1 << 20)) for _ in range(n_bytes >> 20)) + deflater.flush()
    return meta(DEFLATED) + body


def test_a_deflated_bomb_is_given_up_early(tmp_path, monkeypatch):
    inflated = []
    inflate = zlib.decompressobj

    class Counting:
        def __init__(self, *arguments):
            self.inner = inflate(*arguments)

        def decompress(self, *arguments):
            inflated.append(len(plain := self.inner.decompress(*arguments)))
            return plain

        def __getattr__(self, name):
            return getattr(self.inner, name)

    monkeypatch.setattr(zlib, "decompressobj", Counting)
    data = deflated(100 << 20)
    most = max(MIN_INFLATED_BYTES, MAX_INFLATED_PER_BYTE * len(data))
    with pytest.raises(DicomError, match=f"more than {most} bytes in a file of {len(data)}, expected fewer"):
        parse("x.dcm", np.frombuffer(data, np.uint8))
    assert most < sum(inflated) <= 2 * most


def test_an_empty_deflated_image_is_read():
    pixels = np.zeros((1024, 1024), np.uint16)
    file = parse("x.dcm", np.frombuffer(native_file(pixels, DEFLATED), np.uint8))
    assert file.pixels_length == pixels.nbytes


BOMBS = {
    "deflated": lambda: deflated(1 << 30),
    "nested": lambda: meta(EXPLICIT) + element(0x00081140, "SQ", b"", length=0xFFFFFFFF) * 500_000,
    "items": lambda: native_file(
        noisy_slice((6, 5)), before=element(0x52009230, "SQ", b"\xfe\xff\0\xe0\0\0\0\0" * 1_000_000)
    ),
    "malformed": lambda: native_file(noisy_slice((6, 5)))[:-60] + b"\x29\0\1\0??\2\0ab" * 900_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_no_small_file_needs_more_than_half_a_gigabyte(tmp_path, name):
    """In a child process whose memory beyond what importing takes is limited to that."""
    path = tmp_path / "1.dcm"
    path.write_bytes(BOMBS[name]())
    assert path.stat().st_size < 10 << 20
    code = (
        "import resource, sys\n"
        "from lumbar.dicom import read_slice, warm_up\n"
        "from lumbar.errors import DicomError\n"
        "warm_up()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    header = read_slice(sys.argv[1]).header; header.echo_time\n"
        "except DicomError: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)], env=environment, capture_output=True, text=True, check=True
    )
    assert int(run.stdout) * 1024 < 500e6


def test_sixteen_bytes_with_an_undefined_length_in_the_meta_are_refused(tmp_path):
    (tmp_path / "1.dcm").write_bytes(bytes.fromhex("02001000ffffffff" + "00" * 8))
    for call in (read_header, read_slice, lambda path: read_series(path.parent)):
        with pytest.raises(DicomError, match=r"found .*, expected"):
            call(tmp_path / "1.dcm")


def test_a_file_that_is_another_by_the_time_it_is_read_again_is_said_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "1.dcm"
    path.write_bytes(b"0123456789")
    assert reread(str(path), 10).tobytes() == b"0123456789"
    assert reread(str(path), 20).tobytes() == b"0123456789"
    path.unlink()
    with pytest.raises(DicomError, match=r"1\.dcm: found No such file or directory, expected a DICOM file"):
        reread(str(path), 10)
    os.mkfifo(path)
    with pytest.raises(DicomError, match=r"1\.dcm: found a FIFO, expected a regular file"):
        reread(str(path), 10)
    path.unlink()
    path.mkdir()
    with pytest.raises(DicomError, match=r"1\.dcm: found a directory, expected a regular file"):
        reread(str(path), 10)
