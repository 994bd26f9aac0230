"""Files for tests of headers and limits: one that is saved, one that is refused, and tags that place a slice."""

import pytest

from dicom_writer import noisy_slice, text
from lumbar.errors import DicomError

PIXELS = noisy_slice((6, 5))
GEOMETRY = (
    (0x00080008, "CS", text("ORIGINAL\\PRIMARY\\M")),
    (0x00080060, "CS", b"MR"),
    (0x0008103E, "LO", text("T2 säg")),
    (0x00180050, "DS", b"4.0 "),
    (0x00180086, "IS", b"1\\2 "),
    (0x00180088, "DS", b""),
    (0x0020000E, "UI", b"1.2.3\0"),
    (0x00200011, "IS", b" 7"),
    (0x00200012, "IS", b"2 "),
    (0x00200013, "IS", b"12"),
    (0x00200032, "DS", text("-20.64528\\-109.5597\\201.9066")),
    (0x00200037, "DS", text("1\\0\\0\\0\\1\\-1.5e-17")),
    (0x00280030, "DS", text("0.68359375\\0.5")),
    (0x00200100, "IS", b"3 "),
    (0x00281050, "DS", text("918\\40")),
    (0x00281051, "DS", b"1616"),
    (0x00281052, "DS", b"-1024 "),
    (0x00281053, "DS", b"1 "),
)


def save(folder, data, name="1.dcm"):
    path = folder / name
    path.write_bytes(data)
    return path


def refusal(call, *arguments):
    """The one line that ``call`` ends in."""
    with pytest.raises(DicomError) as caught:
        call(*arguments)
    line = str(caught.value)
    assert "found" in line
    assert "expected" in line
    assert "\n" not in line
    return line
