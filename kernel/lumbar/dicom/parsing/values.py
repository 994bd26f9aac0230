"""Parsing the values of elements in Python: texts in their character set, and numbers in any form."""

from __future__ import annotations

import math
import re
import struct
import threading
import warnings
from functools import lru_cache

PYDICOM_LOCK = threading.Lock()  # around functions of pydicom that warn: catch_warnings is not thread-safe

_ESCAPES = re.compile(r"\x1b(?:\$[()]?|[-(),])[@-Z]")
_NUMBER = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_NUMBERS = re.compile(rb"%b(?:\\%b)*" % ((rb"[+-]?\d+\.?\d*(?:[eE][+-]?\d+)?",) * 2))
_PLAIN_BYTES = 128  # of a value in its usual form, such as a position or orientation
_PADDING = b" \0\t\r\n"
_BINARY = {
    "FD": "d",
    "OD": "d",
    "FL": "f",
    "OF": "f",
    "US": "H",
    "OW": "H",
    "SS": "h",
    "UL": "I",
    "OL": "I",
    "SL": "i",
    "UV": "Q",
    "OV": "Q",
    "SV": "q",
}
_ISO_8859 = {str(part + 1): f"ISO_IR {n}" for part, n in enumerate((100, 101, 109, 110, 144, 127, 126, 138, 148))}
_MAX_VALUES = 64  # of one element; no field of a header has more
_MAX_TEXT = 1 << 10  # bytes; the longest text of a header is an LO or a UID of 64 characters
_MAX_INTEGER = 1 << 53


def vr_text(letters: int) -> str:
    """A VR such as ``"DS"`` from the number that the walk stores for it; empty in implicit encoding."""
    return chr(letters >> 8) + chr(letters & 255) if letters else ""


@lru_cache(maxsize=1024)
def text_of(raw: bytes, character_set: bytes = b"") -> str | None:
    """The text of a value without control characters; ``None`` where nothing is left.

    ``character_set`` is the value of SpecificCharacterSet. Where it is empty, UTF-8 is tried before ISO 8859-1. The
    result is cached, because every slice of a series has the same few texts.
    """
    stripped = raw[:_MAX_TEXT].strip(_PADDING)
    if not stripped:
        return None
    if stripped.isascii() and b"\x1b" not in stripped:
        text = stripped.decode("ascii")
    else:
        text = _decoded(stripped, character_set)
    if "\x1b" in text:  # the codec of some character sets leaves their escape sequences (PS3.3 section C.12.1.1.2)
        text = _ESCAPES.sub("", text)
    if not text.isprintable():  # control characters, marks that change the reading direction, lone surrogates
        text = "".join([letter if letter.isprintable() else " " for letter in text])
    return text.strip() or None


def _decoded(raw: bytes, character_set: bytes) -> str:
    """Decode text that is not only ASCII, by pydicom's tables (PS3.3 section C.12.1.1.2)."""
    names = _encodings(character_set)
    if not names:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return raw.decode("latin-1")
    from pydicom import charset  # late: nearly all headers are ASCII

    with PYDICOM_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return str(charset.decode_bytes(raw, charset.convert_encodings(names), {0x5C, 0x0D, 0x0A, 0x09, 0x0C}))
        except (UnicodeError, LookupError, ValueError):
            return raw.decode("latin-1")


def _encodings(character_set: bytes) -> list[str]:
    """The defined terms in ``character_set``, with common misspellings corrected; empty where none is known."""
    if not character_set.strip(_PADDING + b"\\"):
        return []
    from pydicom.charset import python_encoding

    names = []
    for part in character_set[:_MAX_TEXT].split(b"\\"):
        name = part.strip(_PADDING).decode("latin-1").upper()
        name = re.sub(r"^ISO[ _-]?IR[ _-]*(\d+)$", r"ISO_IR \1", name)
        name = re.sub(r"^ISO[ _-]?2022[ _-]?IR[ _-]*(\d+)$", r"ISO 2022 IR \1", name)
        name = re.sub(r"^ISO[ _-]?8859[ _-]?(\d+)$", lambda match: _ISO_8859.get(match[1], match[0]), name)
        name = {"UTF-8": "ISO_IR 192", "UTF8": "ISO_IR 192", "GB2312": "GBK"}.get(name, name)
        if name in python_encoding:
            names.append(name)
        elif not names:
            names.append("")  # the others extend the first one; where it is unknown it is taken for ASCII
    return names if any(names) else []


@lru_cache(maxsize=64)
def uid_of(raw: bytes) -> str:
    """A UID: the text before the first NUL or line break, without blanks; empty where there is none."""
    return text_of(re.split(rb"[\0\r\n]", raw[:_MAX_TEXT].lstrip(_PADDING), maxsplit=1)[0]) or ""


def numbers_of(raw: bytes, vr: str, is_big: bool, count: int) -> tuple[float, ...] | None:
    """The numbers of a value according to its VR; ``None`` where there are none or one is not finite.

    ``count`` is the expected number of values (0: any). Where several are expected, they may be separated by commas.
    """
    letter = _BINARY.get(vr)
    if letter is None:
        return _decimals(raw, count)
    size = struct.calcsize(letter)
    number = min(len(raw) // size, _MAX_VALUES)
    values = struct.unpack_from(f"{'>' if is_big else '<'}{number}{letter}", raw)
    return tuple(map(float, values)) if values and all(map(math.isfinite, values)) else None


def _decimals(raw: bytes, count: int) -> tuple[float, ...] | None:
    """Parse numbers written as text; decimal commas count as points."""
    if len(raw) <= _PLAIN_BYTES and _NUMBERS.fullmatch(plain := raw.rstrip(_PADDING)):  # the usual form
        numbers = tuple(map(float, plain.split(b"\\")))
        return numbers if all(map(math.isfinite, numbers)) else None
    parts = raw[: 64 * _MAX_TEXT].strip(_PADDING).split(b"\\", _MAX_VALUES)
    while len(parts) > 1 and not parts[-1].strip(_PADDING):  # a separator after the last number
        parts.pop()
    is_list = b"." in raw or count > 2  # else commas may be decimal commas: "0,5" is a half
    if len(parts) == 1 and count > 1 and is_list and raw.count(b",") == count - 1:
        parts = parts[0].split(b",")
    values = []
    for part in parts:
        part = part.strip(_PADDING)
        if b"," in part:
            if part.count(b",") > 1 or b"." in part:
                return None
            part = part.replace(b",", b".")
        if not _NUMBER.fullmatch(part):
            return None
        values.append(float(part))
    return tuple(values) if all(map(math.isfinite, values)) else None


def number_of(raw: bytes, vr: str, is_big: bool, is_integer: bool, count: int) -> int | float | tuple | None:
    """The value of a field: one number (``count`` 1), a tuple of ``count`` numbers, or of any number of them (0)."""
    values = numbers_of(raw, vr, is_big, count)
    if values is None:
        # Of several values the first may still be a number
        values = numbers_of(raw.split(b"\\", 1)[0], vr, is_big, 1) if count == 1 and vr not in _BINARY else None
    if values is None or (count > 1 and len(values) != count):
        return None
    if is_integer:
        return int(values[0]) if abs(values[0]) <= _MAX_INTEGER else None
    return values[0] if count == 1 else values
