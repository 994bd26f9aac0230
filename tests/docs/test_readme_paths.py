"""README's three paths, run step by step from README's own text in a copy of the repository."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest

from lumbar_publish.names import Layout

pytestmark = pytest.mark.usefixtures("unmeasured_children")

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    "kernel", "src", "weights", "examples", "tests/support", "README.md", "Makefile", "pyproject.toml",
    "constraints.txt", "build_dataset.py", "weights_manifest.json", "submit_notebook.ipynb", ".gitignore",
)  # fmt: skip
COMMAND = re.compile(r"`((?:make|\.venv/bin/python|git checkout)\s[^`]+)`")
BLOCK = re.compile(r"^ {3}```python\n(.*?)^ {3}```", re.M | re.S)


def steps(letter):
    """The commands of each numbered step of a path, in their order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    path = re.search(rf"^## {letter}: .*?(?=^## )", text, re.M | re.S)[0]
    items = re.split(r"^(\d+)\. ", path, flags=re.M)[1:]
    numbers, texts = [int(number) for number in items[::2]], items[1::2]
    assert numbers == list(range(1, len(numbers) + 1))
    texts[-1] = texts[-1].split("\n\n**")[0]
    return [[" ".join(command.split()) for command in COMMAND.findall(BLOCK.sub("", text))] for text in texts]


def block(letter):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    path = re.search(rf"^## {letter}: .*?(?=^## )", text, re.M | re.S)[0]
    return re.sub(r"^ {3}", "", BLOCK.search(path)[1], flags=re.M)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the repository under git, whose ``.venv`` is the interpreter of this test."""
    if not (Path(sys.prefix) / "pyvenv.cfg").is_file():
        pytest.skip("needs to run in a virtual environment, as make test does")
    root = tmp_path_factory.mktemp("clone") / "lumbar-kit"
    for name in COPIED:
        source, target = ROOT / name, root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    (root / ".venv").mkdir()
    for name in os.listdir(sys.prefix):
        (root / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    if not (root / ".venv" / ".installed").exists():
        (root / ".venv" / ".installed").touch()
    os.utime(root / "pyproject.toml", (1e9, 1e9))  # older than what is installed
    os.utime(root / "constraints.txt", (1e9, 1e9))
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], cwd=root, check=True, capture_output=True)
    return root


def run(clone, command):
    """Run a command of README in the copy; its output."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (clone / "kernel", clone / "src", clone / "tests/support")))
    done = subprocess.run(
        ["bash", "-ec", command], cwd=clone, env=environment, capture_output=True, text=True, timeout=3000
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr
    return done.stdout


def test_every_path_is_a_numbered_list_with_commands():
    assert len(steps("A")) == 5
    assert len(steps("B")) == 5
    assert len(steps("C")) == 3
    assert all(steps("A"))
    assert sum(map(len, steps("B"))) >= 5


def test_what_the_paths_leave_in_the_repository_is_never_committed():
    """Patients' images would be, with the next ``git add .``."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    folders = {path.split("/")[0] for path in re.findall(r"--(?:out|data|report|record) ([a-z][\w/.]*)", text)}
    assert {"data", "mine", "out", "runs"} <= folders
    assert {f"/{name}/" for name in folders} <= set(ignored)
    assert "/mine.py" in ignored


def test_the_tracked_files_that_sealing_writes_are_those_that_readme_takes_back():
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    layout = Layout(ROOT)
    written = {path.relative_to(ROOT).as_posix() for path in (layout.lock, layout.notebook, layout.kernel_metadata)}
    assert set(re.search(r"`git checkout -- ([^`]+)`", text)[1].split()) == written
    assert "Sealing a run rewrites two tracked files" in text


@pytest.mark.slow
def test_path_b_predicts_studies_and_leaves_a_report(clone):
    shown = [run(clone, command) for step in steps("B") for command in step]
    assert any("of 1 study predicted" in text for text in shown)
    html = (clone / "out" / "report.html").read_text(encoding="utf-8")
    assert "Sagittal T1 left" in html
    assert len(pd.read_csv(clone / "out" / "submission.csv")) == 25


@pytest.mark.slow
def test_path_c_is_ten_lines_that_run(clone):
    if not (clone / "dist" / "dataset").is_dir() or not (clone / "mine").is_dir():
        for command in [command for step in steps("B")[:2] for command in step]:
            run(clone, command)
    source = block("C")
    assert len([line for line in source.splitlines() if line.strip()]) <= 12
    (clone / "mine.py").write_text(source, encoding="utf-8")
    out = "".join(run(clone, command) for step in steps("C") for command in step)
    assert re.search(r"^\d+ predicted \d+ points$", out, re.M)
    assert "Score(total=" in out


@pytest.mark.slow
def test_path_a_trains_rehearses_and_goes_back(clone):
    """With six studies and tiny networks in the place of forty and the demo's, so that it takes minutes."""
    train = f"{sys.executable} tests/support/train_tiny.py train"
    out = ""
    for step in steps("A"):
        for command in step:
            short = command.replace("--studies 40", "--studies 6").replace("--recipe demo", "--recipe tiny")
            out += run(clone, short.replace(".venv/bin/python -m lumbar_train train", train))
    assert (clone / "runs" / "play" / "report" / "index.html").is_file()
    assert "to compare   the prior" in out
    changed = subprocess.run(["git", "status", "--short"], cwd=clone, capture_output=True, text=True, check=True).stdout
    assert [line for line in changed.splitlines() if not line.startswith("??")] == []


def test_readme_asks_for_the_python_that_the_project_asks_for():
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert f"Python {asked.removeprefix('>=')} or newer" in (ROOT / "README.md").read_text(encoding="utf-8")
