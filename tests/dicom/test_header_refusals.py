"""Files whose header cannot be read: each ends in one line, wherever it is cut or damaged."""

import struct

import numpy as np
import pytest

from dicom_files import GEOMETRY, PIXELS, refusal, save
from dicom_writer import (
    BIG,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    RLE,
    UNDEFINED,
    element,
    meta,
    native_file,
)
from lumbar.dicom import read_header, read_slice
from lumbar.dicom.header import parse
from lumbar.errors import DicomError


@pytest.mark.parametrize(
    "data", [b"", b"x", b"This is no image at all, but a text that is long enough.\n" * 9, bytes(500)]
)
def test_files_that_are_not_dicom_are_refused(tmp_path, data):
    path = save(tmp_path, data)
    for call in (read_header, read_slice):
        assert str(path) in refusal(call, path)


def test_paths_that_cannot_be_read_are_refused(tmp_path):
    assert "No such file" in refusal(read_header, tmp_path / "absent.dcm")
    assert "directory" in refusal(read_slice, tmp_path)
    assert "null" in refusal(read_header, "a\0b")


def test_an_element_beyond_the_end_is_refused_with_its_offset(tmp_path):
    broken = element(0x00091001, "OB", b"1234", length=1 << 20)
    data = meta(EXPLICIT) + broken
    text = refusal(read_header, save(tmp_path, data))
    assert f"offset {len(meta(EXPLICIT))} of {len(data)}" in text


def test_something_else_than_an_item_in_a_sequence_is_refused_without_pixels_that_fit(tmp_path):
    broken = element(0x00081140, "SQ", element(0x00080100, "SH", b"A1"), length=UNDEFINED)
    data = native_file(PIXELS, before=broken)
    assert "inside a sequence" in refusal(read_header, save(tmp_path, data[:-2]))


def test_deeply_nested_sequences_end(tmp_path):
    level = element(0x00081140, "SQ", struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED), length=UNDEFINED)
    refusal(read_header, save(tmp_path, meta(EXPLICIT) + level * 20_000))


def test_a_damaged_deflate_stream_is_refused(tmp_path):
    data = native_file(PIXELS, DEFLATED)
    refusal(read_slice, save(tmp_path, data[:-20]))
    refusal(read_slice, save(tmp_path, data[:-40] + b"\xff" * 40))


def test_a_deflated_file_that_grows_beyond_reason_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("lumbar.dicom.parsing.files.MIN_INFLATED_BYTES", 1 << 16)
    data = native_file(np.zeros((400, 400), np.uint16), DEFLATED)
    assert "deflate" in refusal(read_slice, save(tmp_path, data))


@pytest.mark.parametrize("syntax", [EXPLICIT, DEFLATED, IMPLICIT, BIG])
def test_every_truncation_is_read_or_refused(syntax):
    data = native_file(PIXELS, syntax, extra=GEOMETRY)
    refusals = []
    for size in range(len(data)):
        try:
            parse("x.dcm", np.frombuffer(data[:size], np.uint8))
        except DicomError as error:
            refusals.append(str(error))
    assert refusals
    assert all(line.startswith("x.dcm: found") for line in refusals)


def test_a_header_without_an_image(tmp_path):
    header = read_header(save(tmp_path, meta(RLE) + element(0x00080060, "CS", b"MR")))
    assert (header.transfer_syntax_uid, header.modality, header.rows) == (RLE, "MR", None)
    assert "no pixel data" in refusal(read_slice, tmp_path / "1.dcm")
