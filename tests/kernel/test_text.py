"""What of foreign text may be shown."""

import io
import logging

import pytest

from lumbar.errors import CohortError
from lumbar.io.text import known_words, masked_name, one_line, printable, printable_log, public_line, unusual_names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, Größe µ – …", "plain, Größe µ – …"),
        ("a\x1b[31mred\x1b[0m", "a\\x1b[31mred\\x1b[0m"),
        ("title\x1b]0;owned\x07", "title\\x1b]0;owned\\x07"),
        ("one byte\x9b2J", "one byte\\x9b2J"),
        ("two\r\nlines\tand\vmore\u2028", "two  lines and more "),
        ("bell\x07 back\x08 zero\0 delete\x7f", "bell\\x07 back\\x08 zero\\x00 delete\\x7f"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("caf\udce9", "caf\\xe9"),
        ("\ud83d alone", "\\ud83d alone"),
        ("tag\U000e0041", "tag\\U000e0041"),
        (12, "12"),
    ],
)
def test_nothing_steers_a_terminal(text, expected):
    assert printable(text) == expected
    assert printable(expected) == expected
    assert expected.isprintable()


def test_long_text_is_cut():
    assert printable("x" * 100, 10) == "x" * 9 + "…"
    assert printable("x" * 10, 10) == "x" * 10


@pytest.mark.parametrize(
    "name",
    ["12.dcm", "000123.DCM", "IM000123", "IMG-0001-00001.dcm", "1.2.840.113619.2.55.3", "MR.1.2.840.dcm", "series_3",
     "T2_SAG_3", "test_images", "train_series_descriptions.csv", "DICOMDIR", "weights_manifest.json", "", ".."],
)  # fmt: skip
def test_names_of_the_trade_pass(name):
    assert masked_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["DOE^JANE", "Doe Jane.dcm", "Smith_19700101", "müller.dcm", "caf\udce9.dcm", "\ud83d", "a\x1b[31m", "=cmd.dcm",
     "x" * 200, "12 (Jane).dcm", "-rf", "Ng", "a\nb"],
)  # fmt: skip
def test_other_names_become_a_short_mask_that_stays(name):
    mask = masked_name(name)
    assert mask.startswith("name~")
    assert len(mask) <= 13
    assert mask.isprintable()
    assert mask.endswith(".dcm") == name.endswith(".dcm")
    assert masked_name(name) == mask == masked_name(mask)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Sag T2 TSE", "Sag T2 TSE"),
        ("t2_tse_sag_384", "t2_tse_sag_384"),
        ("SIEMENS Healthineers", "SIEMENS Healthineers"),
        ("Sag T2 TSE Smith, John", "Sag T2 TSE …"),
        ("DOE^JANE 19700101", "…"),
        ("Patient 0123456789", "…"),
        ("T2\x1b[31m", "T2\\x1b[31m"),
        ("", ""),
    ],
)
def test_of_free_text_the_words_of_the_trade_are_kept(text, expected):
    assert known_words(text) == expected
    assert len(known_words(text * 100)) <= 64


ROOTS = ("/data/DOE JANE/test_images/12", "/data/DOE JANE/test_images", "/data/DOE JANE")
DOE = masked_name("DOE^JANE")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/data/DOE JANE/test_images/12/34/5.dcm: found 3, expected 4", "34/5.dcm: found 3, expected 4"),
        ("/data/DOE JANE/test_images/12: not found", "12: not found"),
        ("[Errno 5] error: '/data/DOE JANE/test_images/12/34/5.dcm'", "[Errno 5] error: '34/5.dcm'"),
        ("/data/DOE JANE/test_images/12/DOE^JANE/5.dcm: x", f"{DOE}/5.dcm: x"),
        ("DOE^JANE: slice 3 left out", f"{DOE}: slice 3 left out"),
        ("series smith: found smith", f"series {masked_name('smith')}: found smith"),
        ("moderate is nan, expected finite", "moderate is nan, expected finite"),
        ("L4/L5 and T2/STIR at 3 mm/s, 1/2", "L4/L5 and T2/STIR at 3 mm/s, 1/2"),
        ("No such file: '/home/jane/x y/secret plan.dcm'", f"No such file: '…/{masked_name('secret plan.dcm')}'"),
        ("cannot open /home/jane/12.dcm, expected", "cannot open …/12.dcm, expected"),
        ("cannot open C:\\Users\\jane\\12.dcm", "cannot open …/12.dcm"),
        ("\x1b[31m/data/DOE JANE/x", "\\x1b[31mx"),
    ],
)
def test_lines_hold_no_absolute_path_and_no_unusual_name(line, expected):
    names = ("DOE^JANE", "smith", "nan")
    assert public_line(line, ROOTS, names) == expected
    assert public_line(expected, ROOTS, names) == expected


def test_a_name_is_found_however_a_message_spells_it(tmp_path):
    for name in ("caf\udce9 jane.dcm", "tab\tjane.dcm", "two  jane.dcm", "Jane\x1b[31m.dcm"):
        (tmp_path / name).write_text("")
        for spelled in (name, repr(name), printable(name), " ".join(name.split())):
            line = public_line(f"{tmp_path}/{spelled}: x", [tmp_path], unusual_names(tmp_path))
            assert "jane" not in line.lower(), (name, spelled)
            assert masked_name(name) in line


def test_an_error_is_one_line_and_names_are_hidden_before_it_is_cut():
    assert one_line(CohortError("a\nb")) == "a b"
    assert one_line(ValueError("a\x1bb")) == "ValueError: a\\x1bb"
    assert one_line(CohortError("")) == "CohortError: "

    def public(text):
        return public_line(text, (), ["DOE^JANE"])

    for n in range(280, 300):
        assert "DO" not in one_line(RuntimeError("." * n + " DOE^JANE"), public)
    assert len(one_line(RuntimeError("x" * 1000))) < 330


def test_the_log_is_safe_whoever_shows_it():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    log = printable_log()
    log.addHandler(handler)
    try:
        log.warning("%s and %d", "a\x1b[31m\nb", 3)
        log.warning("50 % of \udce9")
    finally:
        log.removeHandler(handler)
    assert stream.getvalue() == "a\\x1b[31m b and 3\n50 % of \\xe9\n"
