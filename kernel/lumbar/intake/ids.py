"""Ids of studies and series from any text: safe in a CSV cell, in HTML, in an address and as the name of a file."""

from __future__ import annotations

import hashlib
import re

from lumbar.io.text import masked_name

StudyId = int | str

_MAX_LENGTH = 100
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")
_SAFE = re.compile(r"[A-Za-z0-9._-]")
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")


def safe_id(text: str) -> StudyId:
    """Make an id of a text, another one of each text.

    Whole numbers stay as they are. Characters other than A-Z, a-z, 0-9, ``.``, ``_`` and ``-`` become ``~`` and the two
    hex digits of each of their bytes in UTF-8: ``fall 7`` gives ``fall~207``. A first
    character that a spreadsheet, a shell or a file system would take for something else is escaped too.
    """
    if _NUMBER.fullmatch(text):
        return int(text)
    out = "".join(char if _SAFE.fullmatch(char) else _escaped(char) for char in text)
    if out[:1] in ("-", ".") or _RESERVED.fullmatch(out):
        out = _escaped(out[0]) + out[1:]
    if len(out) > _MAX_LENGTH:
        out = f"{out[:80]}~{hashlib.blake2b(text.encode('utf-8', 'surrogateescape'), digest_size=8).hexdigest()}"
    return out or "~"


def _escaped(char: str) -> str:
    return "".join(f"~{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))


def is_plain_name(name: str) -> bool:
    """Whether a folder's name can be an id: of safe characters, with a digit, and no possible name of a person."""
    return (
        re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) is not None
        and any(char.isdigit() for char in name)
        and masked_name(name) == name
        and safe_id(name) == (int(name) if _NUMBER.fullmatch(name) else name)
    )


def id_order(study_id: StudyId) -> tuple[bool, int, list[tuple[bool, int, str]], str]:
    """A key that sorts whole numbers before texts, and numbers inside texts by their value."""
    text = str(study_id)
    parts = [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.findall(r"\d+|\D+", text)]
    return isinstance(study_id, str), study_id if isinstance(study_id, int) else 0, parts, text
