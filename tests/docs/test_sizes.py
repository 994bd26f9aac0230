"""The limits that CONTRIBUTING sets for the size of files and functions, held for the whole repository."""

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
FOLDERS = ("kernel", "src", "tests", "benchmarks", "tools", "examples")
FILES = [PROJECT / "build_dataset.py", *(path for name in FOLDERS for path in sorted((PROJECT / name).rglob("*.py")))]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
# An argument parser is a list, which cutting does not make shorter; the walk over a header's elements is one compiled
# loop, and each further function would cost the compiler a tenth of a second at the first slice.
EXCEPTIONS = {("kernel/lumbar/dicom/parsing/scan.py", "_walk")}


def is_parser(node):
    """Whether a function does nothing much but add arguments to a parser."""
    calls = [ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)]
    return sum(name == "add" or name.endswith(".add_argument") for name in calls) > len(calls) / 2


def functions(path):
    """Each function of a file that counts: (name, lines)."""
    place = path.relative_to(PROJECT).as_posix()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if is_function and (place, node.name) not in EXCEPTIONS and not is_parser(node):
            yield node.name, node.end_lineno - node.lineno + 1


def test_no_file_is_longer_than_400_lines():
    lengths = {path.relative_to(PROJECT).as_posix(): path.read_text(encoding="utf-8").count("\n") for path in FILES}
    assert {place: n for place, n in lengths.items() if n > MAX_FILE_LINES} == {}


def test_no_function_is_longer_than_60_lines():
    long = [
        f"{path.relative_to(PROJECT).as_posix()}: {name} has {n} lines"
        for path in FILES
        for name, n in functions(path)
        if n > MAX_FUNCTION_LINES
    ]
    assert long == []


@pytest.mark.parametrize(("place", "name"), sorted(EXCEPTIONS))
def test_every_exception_is_still_needed(place, name):
    tree = ast.parse((PROJECT / place).read_text(encoding="utf-8"))
    (node,) = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name)
    assert node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
