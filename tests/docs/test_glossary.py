"""The glossary defines the field's words, and the words that it sorts out do not come back."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text()
DEFINED, _, UNUSED = GLOSSARY.partition("## Words that are not used")
WORDS = (
    "study", "series", "stack", "slice", "level", "canal point", "foraminal point", "recess", "crop", "window", "fold",
    "out-of-fold", "bundle", "manifest", "probe", "prior", "floor", "stage", "step", "fit",
)  # fmt: skip
CODE = [
    *(
        path
        for folder in ("kernel", "src", "tools", "examples", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    ),
    ROOT / "build_dataset.py",
]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
VARIABLES = {"found", "item"}  # ordinary words, that say nothing as the name of a value


def unused():
    """The words of the table's left column that are names, without the variables."""
    rows = re.findall(r"^\| (`[^|]+) \|", UNUSED, re.M)
    return {word for row in rows for word in re.findall(r"`(\w+)`", row)} - VARIABLES


def names(source):
    """Every name that a module gives or uses: of variables, arguments, attributes, functions, classes, imports."""
    for node in ast.walk(ast.parse(source)):
        for field in ("id", "arg", "attr", "name", "asname"):
            if isinstance(value := getattr(node, field, None), str):
                yield value


def sorted_out(source, words):
    """Names that are one of the words, or hold one between underscores (constants and classes: as a whole)."""
    whole = {word for word in words if not word.islower()}
    part = re.compile(rf"(?:^|_)(?:{'|'.join(sorted(words - whole))})(?:_|$)")
    return sorted({name for name in names(source) if name in whole or part.search(name)})


def variables(source):
    """Names that are bound to a value: assigned, looped over, or arguments."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg


def test_every_word_of_the_field_is_defined_once():
    entries = [word for row in re.findall(r"^\| ([^|]+) \|", DEFINED, re.M) for word in row.strip().split(", ")]
    assert [word for word in WORDS if entries.count(word) != 1] == []


def test_the_table_is_read():
    assert {"doubts", "objections", "Ranks", "find_usual"} <= unused()
    assert set(re.findall(r"`(\w+)`", UNUSED)) >= VARIABLES


def test_no_name_in_the_code_is_a_word_that_was_sorted_out():
    words = unused()
    names_of = {path: sorted_out(path.read_text(), words) for path in [*CODE, *TESTS]}
    assert {str(path.relative_to(ROOT)): names for path, names in names_of.items() if names} == {}


def test_no_variable_is_called_found_or_item():
    wrong = {path: VARIABLES & set(variables(path.read_text())) for path in CODE}
    for path in wrong:
        if "dicom" in path.parts:
            wrong[path] -= {"item"}  # of a sequence, PS3.5 section 7.5
    assert {str(path.relative_to(ROOT)): names for path, names in wrong.items() if names} == {}


def test_no_page_uses_a_word_that_was_sorted_out():
    words = unused() - {"demand"}  # a word like any other in a sentence
    for path in PAGES:
        text = DEFINED if path.name == "glossary.md" else path.read_text()
        assert [word for word in words if re.search(rf"\b{word}\b", text)] == [], path


@pytest.mark.parametrize(
    "source",
    [
        "doubts = []",
        "def objections(): pass",
        "class Ranks: pass",
        "import x as find_usual",
        "from x import seed_count",
        "a.wildness = 1",
        "f(doubts=1)",
        "def demand_client(): pass",
    ],
)
def test_a_word_that_comes_back_would_be_seen(source):
    assert sorted_out(source, unused())


@pytest.mark.parametrize("source", ["found = 1", "for item in (): pass", "def f(found): pass", "with a as item: pass"])
def test_a_variable_that_says_nothing_would_be_seen(source):
    assert VARIABLES & set(variables(source))
    assert not VARIABLES & set(variables("x = a.item(); y = 'found 3'"))
