"""Data elements (PS3.5 chapter 7) by recursion: offset and length of each top-level value of well-formed ones."""

import struct

_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}


def read_head(data, at, explicit, big):
    """Tag, length and where the value starts."""
    order = ">" if big else "<"
    group, number, length = struct.unpack_from(f"{order}HHI", data, at)
    if group == 0xFFFE or not explicit or not data[at + 4 : at + 6].isalpha() or not data[at + 4 : at + 6].isupper():
        return group << 16 | number, length, at + 8
    if data[at + 4 : at + 6] in _LONG:
        return group << 16 | number, struct.unpack_from(f"{order}I", data, at + 8)[0], at + 12
    return group << 16 | number, struct.unpack_from(f"{order}H", data, at + 6)[0], at + 8


def read_elements(data, at, explicit, big, *, is_item=False):
    """{tag: (offset, length)} up to the pixel data, the end of an item, or of the data; and where that is."""
    values = {}
    while at + 8 <= len(data):
        tag, length, value = read_head(data, at, explicit, big)
        if tag == 0xFFFEE00D:
            return values, value
        values[tag] = (value, length)
        if tag == 0x7FE00010 and not is_item:
            return values, value
        at = skip_sequence(data, value, explicit, big) if length == 0xFFFFFFFF else value + length
    return values, at


def skip_sequence(data, at, explicit, big):
    """Behind a sequence of undefined length."""
    while True:
        tag, length, at = read_head(data, at, explicit, big)
        if tag == 0xFFFEE0DD:
            return at
        at = read_elements(data, at, explicit, big, is_item=True)[1] if length == 0xFFFFFFFF else at + length
