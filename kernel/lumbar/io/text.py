"""Making foreign text safe to show: without control characters and without names of persons.

Names of files and folders, columns of tables and texts inside DICOM files come from outside. Before they reach a
terminal, log, record, report or table they go through this module: control characters are written as escapes, absolute
paths become relative to the data, file names that may be a person's become short masks, and of free text only known
words (of acquisitions, scanners and anatomy) are kept.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

from lumbar.errors import LumbarError

FREE_TEXT_LENGTH = 64  # characters of a description or manufacturer that are shown
LINE_LENGTH = 300  # characters of the message of an error that is not ours
_MESSAGE_LENGTH = 2000  # characters of our own errors' messages, which the command line prints
_MAX_NAMES = 100_000  # names of a study's files that are checked
_MASK = "name~"
_HIDDEN = "…"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words in names of files and folders that say nothing about a person; numbers are kept as well, since ids are numbers.
_NAME_WORDS = _words(
    """a ax axi axial b baseline code coordinates cor csv dataset dcm descriptions dicom dicomdir dist dwi e ep exam
    executed f file flair fold folds frame full gz h html i im ima image images img input instance ipynb iso json
    kaggle label lock log lumbar lspine m manifest metadata mr mri n nii npz o out p parquet part png py record report
    s safetensors sag sagittal sample se sequence ser series seq slice slices sms solution spine st stack std stir
    study sub submission t test tmp tra train truth tse txt uid v version vol w weights work working x y z"""
)
# Words in SeriesDescription, in the table's descriptions and in Manufacturer that say nothing about a person.
_ACQUISITION_WORDS = _words(
    """ac acquisition agilent ap artifact asset ax axial b bh blade block body bruker c canon caipi coil contrast cor
    coronal cs csf cube cuda d de deep dicom dir dixon dl drive dual dwi ecg echo ep epi esaote f fast fat fatsat fe
    ff fiesta flair flash fonar fov fr frfse fs fse fuji fujifilm gad gadolinium ge gems gd gr gradient gre grase
    haste healthcare healthineers hi hires hitachi hyperfine imaging in inc iso ir k lava limited localiser localizer
    loc low lower ls lspine lumbar lumbosacral ltd m mag magnitude marconi me medic medical mindray modality mono
    monochrome motion mprage mr mri ms multi myelo myelogram myelography mx n navi neusoft no nx op opp out p palette
    color parallel paramed pat pd pdw pe phase philips picker plus post pre propeller ps q r res resp rgb rr s
    sag sagittal sacral sacrum samsung sat sc scan scout se sec sense seq sequence shim short si siemens single sl
    slice slices smash sms space spair spc spectrum spgr spine spir spinal ssfp ssfse st stack stir std survey sv
    systems t t1 t1w t2 t2w t2star te ti tilt tilted time tir tirm toshiba tr tra trans transversal transverse tru
    true trufi tse turbo uih united upper v vibe view vista volume vvs w water weighted whole wo with without x xl y
    ybr z zoom"""
)
_WORD = re.compile(r"[^\W\d_]+")
_PARTS = re.compile(r"[A-Za-z]+|[0-9]+|[^A-Za-z0-9]+")
_MASKED = re.compile(rf"{_MASK}[0-9a-f]{{4}}(\.[A-Za-z0-9]{{1,8}})?")
_NAME_MARKS = frozenset(("-", "_", ".", "--", "__", "_-", "-_", "~"))
# An absolute path, also with the letter of a drive, up to its last part; in quotes, up to the end of the quotes.
_ABSOLUTE = re.compile(r"(?<![\w./~…])(?:[A-Za-z]:[\\/]|/)(?=[^\s/'\",;:)(\]])(?:[^'\",;:)(\]\n]*/)?[^\s'\",;:)(\]]*")
_ROOT_MARK = "\0"  # replaces a root and its slash while a line is processed
_QUOTED = re.compile(r"(['\"])((?:[A-Za-z]:[\\/]|/|\0)[^'\"]*)\1")
_INSIDE = re.compile(r"\0[^\s'\",;:)(\]]*")
_SLASHES = re.compile(r"[\\/]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def counted(number: int, noun: str) -> str:
    """A number with its noun: ``1 stack``, ``2 stacks``, ``0 studies``; ``series`` and ``pixels`` stay as they are."""
    if number == 1 or noun.endswith("s"):
        return f"{number} {noun}"
    is_consonant_y = noun.endswith("y") and noun[-2:-1] not in "aeiou"
    return f"{number} {noun[:-1]}ies" if is_consonant_y else f"{number} {noun}s"


def printable(value: object, limit: int | None = None) -> str:
    r"""Text as one line that is safe to print: white space becomes blanks, what is invisible becomes escapes.

    These are control characters, terminal escape sequences, marks that change the reading direction, and the lone
    surrogates of file names that are not UTF-8 (``\xe9``). ``limit`` is the largest number of characters.
    """
    text = value if isinstance(value, str) else str(value)
    if not text.isprintable():
        text = "".join([char if char.isprintable() else " " if char.isspace() else _escape(char) for char in text])
    if limit is not None and len(text) > limit:
        text = text[: max(0, limit - 1)] + _HIDDEN
    return text


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was no UTF-8, as os.fsdecode keeps it
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def masked_name(name: str) -> str:
    """The name of a file or folder if it cannot be a person's, else a short mask, the same for the same name.

    Numbers, UIDs and names made of the words that scanners and this kit use are kept (``12.dcm``, ``IM000123``,
    ``series-3``). A mask is ``name~`` and four hex digits of the name's hash, with the file's extension: only those who
    have the files can tell which one is meant.
    """
    if name in ("", ".", "..", _HIDDEN) or _MASKED.fullmatch(name):
        return name
    if len(name) <= 80 and name.isascii() and all(_is_plain(part) for part in _PARTS.findall(name)):
        return name
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape" if _is_bytes(name) else "backslashreplace"))
    extension = os.path.splitext(name)[1]
    kept = extension.lower() if extension[1:].lower() in _NAME_WORDS else ""
    return f"{_MASK}{digest.hexdigest()[:4]}{kept}"


def _is_bytes(name: str) -> bool:
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _is_plain(part: str) -> bool:
    return part.isdigit() or part in _NAME_MARKS or part.lower() in _NAME_WORDS


def known_words(value: object, limit: int = FREE_TEXT_LENGTH) -> str:
    """Free text with all unknown words hidden: ``Sag T2 TSE Smith`` becomes ``Sag T2 TSE …``.

    Numbers of up to four digits are kept; longer ones may be an id or a date of birth.
    """
    text = printable(unicodedata.normalize("NFKC", printable(value)))[: 4 * limit]
    text = re.sub(r"[^\W_]+", lambda match: match[0] if _is_known(match[0]) else _HIDDEN, text)
    text = re.sub(r"…(?:[\s^,.'-]*…)+", _HIDDEN, text)
    return printable(text.strip(), limit)


def _is_known(word: str) -> bool:
    if len(word) > 12:
        return False
    letters = _WORD.findall(word)
    if not letters:
        return len(word) <= 4 and word.isascii()
    return word.lower() in _ACQUISITION_WORDS or all(part.lower() in _ACQUISITION_WORDS for part in letters)


class PublicText:
    """Makes lines safe for record, report and log: with relative paths, masked names and printable characters.

    Args:
        roots: folders that paths are shown relative to, such as the study's and the competition's.
        names: names of files and folders to be masked wherever a line contains them (``unusual_names``).
    """

    def __init__(self, roots: Iterable[str | os.PathLike[str]] = (), names: Iterable[str] = ()) -> None:
        spelled = {form: masked_name(os.path.basename(path)) for root in roots for path, form in _root_spellings(root)}
        self._roots = [
            (_root_pattern(form), short) for form, short in sorted(spelled.items(), key=lambda pair: -len(pair[0]))
        ]
        forms = {form: masked_name(name) for name in names for form in _spellings(name)}
        self._names = [
            (form, _name_pattern(form), mask) for form, mask in sorted(forms.items(), key=lambda pair: -len(pair[0]))
        ]

    def __call__(self, text: str) -> str:
        """The line as it may be shown."""
        text = text.replace(_ROOT_MARK, "\\x00")
        for pattern, short in self._roots:
            text = pattern.sub(lambda match, short=short: _ROOT_MARK if match[0].endswith("/") else short, text)  # type: ignore[misc]
        for form, pattern, mask in self._names:
            if form in text:
                text = pattern.sub(mask, text)
        text = _QUOTED.sub(lambda match: match[1] + _masked_path(match[2]) + match[1], text)
        text = _INSIDE.sub(lambda match: _masked_path(match[0]), text)
        return printable(_ABSOLUTE.sub(lambda match: _masked_path(match[0]), text))


def public_line(text: str, roots: Iterable[str | os.PathLike[str]] = (), names: Iterable[str] = ()) -> str:
    """One line as ``PublicText`` shows it."""
    return PublicText(roots, names)(text)


def _name_pattern(form: str) -> re.Pattern[str]:
    name = re.escape(form)
    if not form.isalpha():
        return re.compile(rf"(?<!\w){name}(?!\w)")
    # A plain word (``nan``) may also be one of the message's own words: it is masked only where a name can be.
    return re.compile(
        rf"(?<=[/\0]){name}(?!\w)|(?<!\w){name}(?=/)|(?<=['\"]){name}(?=['\"])|(?:^|(?<=: )){name}(?=:)"
        rf"|(?<=series ){name}(?!\w)|(?<=study ){name}(?!\w)|(?<=file ){name}(?!\w)|(?<=folder ){name}(?!\w)"
    )


def _root_pattern(form: str) -> re.Pattern[str]:
    # A short or relative path may also be the end of another word.
    before = "" if form.startswith("/") and len(form) > 3 else r"(?<![\w./-])"
    return re.compile(rf"{before}{re.escape(form)}(?:/|(?![\w.-]))")


def _masked_path(path: str) -> str:
    """A path below a root with its parts masked; of a path below no root only its last part."""
    parts = _SLASHES.split(path.removeprefix(_ROOT_MARK).rstrip("/"))
    if path.startswith(_ROOT_MARK):
        return "/".join(masked_name(part) for part in parts)
    return f"{_HIDDEN}/{masked_name(parts[-1])}"


def _root_spellings(root: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Pairs of a folder and a spelling of it in messages: as given, absolute, without links, or as ``repr`` has it."""
    given = os.fspath(root)
    spelled = {given, os.path.normpath(given), os.path.abspath(given), os.path.realpath(given)}
    pairs = [(path.rstrip("/"), form) for path in spelled for form in _spellings(path.rstrip("/"))]
    return [(path, form) for path, form in pairs if form not in ("", ".", "..", "/")]


def _spellings(text: str) -> set[str]:
    """A name as it is, and as ``repr``, ``printable`` and ``one_line`` write it."""
    folded = " ".join(text.split())
    return {text, repr(text)[1:-1], printable(text), folded, printable(folded)} - {""}


def study_text(
    root: str | os.PathLike[str],
    split: str,
    study_id: int | str,
    more_roots: Iterable[str | os.PathLike[str]] = (),
    images_folder: str = "",
    files: Iterable[str] | None = None,
) -> PublicText:
    """The ``PublicText`` of a study: paths relative to its folder, unusual names of its files masked.

    With ``files`` the study is these files below ``root``, wherever they lie.
    """
    if files is not None:
        parts = {part for path in files for part in os.path.relpath(path, root).split(os.sep)}
        unusual = sorted((part for part in parts if masked_name(part) != part), key=lambda name: (-len(name), name))
        return PublicText((root, *more_roots), unusual)
    images = os.path.join(root, images_folder or f"{split}_images")
    folder = os.path.join(images, str(study_id))
    return PublicText((folder, images, root, *more_roots), unusual_names(folder))


def unusual_names(folder: str | os.PathLike[str]) -> list[str]:
    """The names of files and folders below ``folder`` that ``masked_name`` masks, the longest first."""
    unusual: set[str] = set()
    n_seen = 0
    for _, folders, files in os.walk(folder):
        for name in (*folders, *files):
            n_seen += 1
            if masked_name(name) != name:
                unusual.add(name)
        if n_seen > _MAX_NAMES:
            break
    return sorted(unusual, key=lambda name: (-len(name), name))


def one_line(error: BaseException, public: Callable[[str], str] = printable) -> str:
    """An error as one line, made safe to show by ``public``: our own message as it is, others with their type.

    Names are masked before the line is cut, so that no part of a name is left at the end.
    """
    is_ours = isinstance(error, LumbarError)
    text = " ".join(public(str(error)).split())
    text = printable(text, _MESSAGE_LENGTH if is_ours else LINE_LENGTH)
    return text if is_ours and text else f"{type(error).__name__}: {text}"


def public_values(value: Any) -> Any:
    """A value of plain JSON types with all texts in it made safe to print."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key) if isinstance(key, str) else key: public_values(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [public_values(member) for member in value]
    return value


def page_value(value: object) -> object:
    """A value as a page shows it (jinja2's ``finalize``): text without control characters."""
    return printable(value) if type(value) is str else value


def csv_cell(value: object) -> object:
    """A cell that no spreadsheet runs as a formula: text that starts like one gets an apostrophe (CSV injection).

    Numbers are unchanged, also those written as text.
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    if not value.lstrip(" ").startswith(_FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


class PrintableLog(logging.Filter):
    """Makes every message of a log one line that is safe to print."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Replace the record's message; no record is left out."""
        record.msg, record.args = printable(record.getMessage()), None
        return True


_PRINTABLE_LOG = PrintableLog()


def printable_log() -> logging.Logger:
    """The kit's logger ``lumbar``, whose messages are made safe to print."""
    log = logging.getLogger("lumbar")
    log.addFilter(_PRINTABLE_LOG)
    return log
