"""Three sessions of a true training with the real client: each notebook runs offline, with Kaggle's limits, on what the
session before left; the run that comes home is bit for bit the one that is made in one piece."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import pytest
import torch

import train_tiny
from lumbar.errors import CohortError
from lumbar_publish.names import COMPETITION, Layout
from lumbar_publish.rehearsal import sandbox
from lumbar_publish.rehearsal.dry_run import run_offline
from lumbar_publish.sealing.seal import seal
from lumbar_publish.training import command
from publish.kaggle_machines import Machines
from publish.kaggle_server import USER, KaggleServer

REPOSITORY = Path(__file__).resolve().parents[2]
QUICK = [word for name in ("sagittal_z", "axial_xy", "sagittal_classifier", "axial_subarticular", "axial_all")
         for word in ("--set", f"{name}.epochs=1")]  # fmt: skip
# How long things took, and where they lay
CLOCK = (
    "seconds.json",
    "session.json",
    "taken_over.json",
    "log.csv",
    "fit.json",
    "weights_manifest.json",
    "evidence.json",
)
# In the place of hours: time is up when the first of these stages that the run has not begun has just begun.
FAST_CLOCK = """

def clock() -> float:
    import pathlib, sys

    words = dict(zip(sys.argv, sys.argv[1:]))
    before, out = words.get("--resume"), pathlib.Path(words["--out"])
    for stage in ("sagittal_z", "axial_subarticular"):
        if before is None or not pathlib.Path(before, stage).exists():
            return 1e12 if (out / stage).exists() else 0.0
    return 0.0
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of what trains, which knows the tiny recipe, with a clock that makes three sessions of it."""
    root = tmp_path / "repo"
    for name in ("kernel/lumbar", "src/lumbar_train"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("constraints-kaggle.txt", "constraints-kaggle-next.txt", "weights_manifest.json"):
        shutil.copy(REPOSITORY / name, root / name)
    train = root / "src" / "lumbar_train"
    source = inspect.getsource(train_tiny.tiny)
    constants = f"SMALL = {train_tiny.SMALL!r}\nCROPS = {train_tiny.CROPS!r}\n"
    with (train / "recipes.py").open("a") as file:
        file.write(f"\n{constants}\n{source}\n\nRECIPES['tiny'] = tiny\n")
    names = train / "pipeline" / "names.py"
    names.write_text(names.read_text().replace('RECIPES = ("demo"', 'RECIPES = ("tiny", "demo"'))
    with (train / "engine" / "interrupts.py").open("a") as file:
        file.write(FAST_CLOCK)
    return root


def run_on_kaggle(folder: Path, text: str) -> int:
    """Run a notebook as the dry run does: no network, a read-only input, at most four cores and 29 GiB a process."""
    notebook, kaggle = folder / "notebook.ipynb", folder / "kaggle"
    notebook.write_text(text)
    place = kaggle / "input" / "competitions" / COMPETITION
    data = place.resolve()
    if sandbox.best_isolation().has_mounts:
        place.unlink()
        place.mkdir()
    try:
        run_offline(notebook, folder, kaggle, {data: place}, kaggle_like=True)
    except CohortError as error:
        print(error)
        return 1
    return 0


def contents(run: Path) -> dict[str, bytes]:
    """What a run has left, apart from what says how long it took, and where."""
    files = (path for path in run.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    paths = [path for path in files if path.name not in CLOCK]
    paths = [path for path in paths if path.relative_to(run).parts[0] not in ("cache", "index", "report")]
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


@pytest.mark.slow
def test_three_sessions_leave_bit_for_bit_what_one_piece_leaves(
    kaggle: KaggleServer,
    repository: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    data = train_tiny.write_cohort(tmp_path / "data")
    Machines(kaggle, tmp_path / "machines", data, run_on_kaggle)
    words = ["--recipe", "tiny", "--root", str(repository), "--accelerator", "none", "--amp", "off", *QUICK]
    out = tmp_path / "whole"
    code = command.main([*words, "--out", str(out), "--wait"])
    said = capfd.readouterr()
    assert code == 0, said.out + said.err
    assert said.out.index("session 1: time limit") < said.out.index("session 2: time limit")
    assert "session 3: whole" in said.out
    assert {name for name in kaggle.kernels} == {f"{USER}/lumbar-train-tiny-{number}" for number in (1, 2, 3)}
    assert json.loads((out / "session.json").read_text())["sessions"] == 3

    torch.set_num_threads(1)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert train_tiny.train(data, tmp_path / "one", *QUICK) == 0
    one, three = contents(tmp_path / "one"), contents(out)
    assert one.keys() == three.keys()
    assert [name for name in one if one[name] != three[name]] == []
    assert seal(Layout(repository), run=out).folder.is_dir()
