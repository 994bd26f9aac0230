"""Names of files for studies, whatever text their ids are."""

from __future__ import annotations

import hashlib
import re

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_LENGTH = 100  # of the study's part of a name: file systems take 255 bytes
# Windows keeps these names for devices, whatever follows the first dot.
_DEVICES = frozenset(("con", "prn", "aux", "nul", *(f"{name}{n}" for name in ("com", "lpt") for n in range(10))))


def file_stem(study_id: int | str) -> str:
    """The study's part of a file name: the id itself where it is plain, else what is plain of it and a hash.

    The result holds letters, digits, ``.``, ``_``, ``-`` and ``~``, begins with a letter or digit, and is no path on
    any system. Two ids never share it: only a hashed name has a ``~``. It also serves as a name inside a web page.
    """
    text = str(study_id)
    if len(text) <= _MAX_LENGTH and _PLAIN.fullmatch(text) and text.lower().partition(".")[0] not in _DEVICES:
        return text
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    readable = _UNSAFE.sub("_", text).strip("._-")[: _MAX_LENGTH // 2] or "study"
    return f"{readable}~{digest}"
