"""The installed commands: each is there, and help calls it by the name under which it was started."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lumbar.io.arguments import program, python_word

PROJECT = Path(__file__).resolve().parents[2]
SCRIPTS = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"]
MODULES = {"lumbar": "lumbar", **{f"lumbar-{name}": f"lumbar_{name}" for name in ("train", "phantom", "publish")}}


def test_each_package_has_a_command():
    assert set(SCRIPTS) == set(MODULES)
    for name, place in SCRIPTS.items():
        module, _, function = place.partition(":")
        assert module == f"{MODULES[name]}.__main__"
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("name", MODULES)
def test_help_names_the_command_as_it_was_started(name, monkeypatch, capsys):
    main = importlib.import_module(f"{MODULES[name]}.__main__").main
    starts = {
        f"/usr/bin/{name}": name,
        f"C:\\{name}.exe".replace("\\", "/"): name,
        "/x/__main__.py": None,
        "pytest": None,
    }
    for started, shown in starts.items():
        for words in ([], ["dry-run"] if name == "lumbar-publish" else []):
            monkeypatch.setattr(sys, "argv", [started, *words, "--help"])
            with pytest.raises(SystemExit) as ended:
                main()
            assert ended.value.code == 0
            expected = " ".join([shown or f"python -m {MODULES[name]}", *words])
            assert capsys.readouterr().out.startswith(f"usage: {expected} ")


def test_the_command_for_the_kernel_answers_as_a_process_of_its_own():
    code = "import sys; sys.argv = ['/bin/lumbar', 'predict']; from lumbar.__main__ import script; script()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: lumbar predict ")


def test_a_program_is_called_by_its_command_or_its_module(monkeypatch):
    for started, expected in (("lumbar", "lumbar"), ("lumbar.py", "python -m lumbar"), ("", "python -m lumbar")):
        monkeypatch.setattr(sys, "argv", [started])
        assert program("lumbar", "lumbar") == expected
    monkeypatch.setattr(sys, "argv", [])
    assert program("lumbar", "lumbar") == "python -m lumbar"


def test_a_printed_command_begins_with_the_python_that_lies_beside_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python"))
    assert python_word() == ".venv/bin/python"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert python_word() == "python"
