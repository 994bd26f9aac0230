"""Help, a misspelt word, a wrong path: answered before anything heavy is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lumbar_train.data import external_points
from lumbar_train.pipeline import names
from lumbar_train.recipes import RECIPES
from lumbar_train.stages.registry import STAGES

HEAVY = (
    "torch", "torchvision", "timm", "numba", "llvmlite", "cv2", "pandas", "pyarrow", "matplotlib", "scipy", "sklearn",
    "pydicom", "jinja2", "numpy", "safetensors", "huggingface_hub",
)  # fmt: skip
# Runs `python -m lumbar_train`, and says on the last line what was imported.
PROBE = f"""\
import runpy, sys
status = 0
try:
    runpy.run_module("lumbar_train", run_name="__main__", alter_sys=True)
except SystemExit as end:
    status = end.code
print("\\nheavy:", *[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
sys.exit(status)
"""


def answer(*arguments):
    """Exit status, output and errors of the command, and the heavy packages that it imported."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", PROBE, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    errors, _, heavy = done.stderr.rpartition("\nheavy:")
    return done.returncode, done.stdout, errors, heavy.split()


@pytest.mark.parametrize(
    "command", [(), ("train",), ("evaluate",), ("baseline",), ("compare",), ("ensemble",), ("recipes",)]
)
def test_help_imports_nothing_heavy(command):
    status, out, errors, heavy = answer(*command, "--help")
    assert (status, errors, heavy) == (0, "", [])
    assert out.startswith("usage: ")


TRAIN = ("train", "--data", "DATA", "--out", "OUT/run")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("trian",), "did you mean train?"),
        (("recipes", "--recipe", "modle2"), "did you mean model2?"),
        ((*TRAIN, "--recipe", "demmo"), "did you mean demo?"),
        ((*TRAIN, "--resme"), "did you mean --resume?"),
        ((*TRAIN, "--stages", "axial_xy,sagital_z"), "did you mean sagittal_z?"),
        ((*TRAIN, "--jobs", "0"), "jobs: found 0, expected 1 or more"),
        ((*TRAIN, "--jobs", "two"), "invalid int value: 'two'"),
        ((*TRAIN, "--resume", "--overwrite"), "found both, expected one"),
        (("train", "--data", "nowhere", "--out", "OUT"), "nowhere: no such folder, expected a competition folder"),
        (("train", "--data", "OUT", "--out", "OUT/run"), "train_series_descriptions.csv: not found"),
        (("train", "--data", "DATA", "--out", "OUT/file"), "OUT/file is a file, expected a folder to write into"),
        (("train", "--data", "DATA", "--out", "OUT/file/run"), "OUT/file is a file"),
        (("train", "--data", "DATA", "--out", "OUT/held"), "add --resume to go on with it"),
        (("train", "--data", "DATA", "--out", "OUT/new", "--resume", "nowhere"), "--resume nowhere: no such folder"),
        ((*TRAIN, "--time-limit", "soon"), "time limit 'soon': expected a duration such as 8.5h"),
        ((*TRAIN, "--ship", "fold"), "did you mean folds?"),
        ((*TRAIN, "--fold-file", "none.csv"), "--fold-file none.csv: no such file"),
        ((*TRAIN, "--points", "none.csv"), "--points none.csv: no such file"),
        ((*TRAIN, "--backbone-weights", "resnet18=none.pth"), "--backbone-weights none.pth: no such file"),
        (("evaluate", "--run", "nowhere", "--data", "DATA"), "--run nowhere: no such folder"),
        (("evaluate", "--run", "OUT", "--data", "nowhere"), "nowhere: no such folder"),
        (("train", "--data", "TEST", "--out", "OUT/run"), "has test_images, which this command does not read"),
        (("evaluate", "--run", "OUT", "--data", "TEST"), "has test_images, add --split test"),
        (("baseline", "--data", "nowhere", "--out", "OUT/run"), "nowhere: no such folder"),
        (("baseline", "--data", "DATA", "--out", "OUT/run", "--columns", "canal"), "--columns: found 'canal'"),
        (("baseline", "--data", "DATA", "--out", "OUT/run", "--epochs", "0"), "--epochs: found 0"),
        (("baseline", "--data", "DATA", "--out", "OUT/run", "--chain-run", "no"), "--chain-run no: no such folder"),
        (("compare", "--data", "DATA", "--split", "train", "--baseline", "no", "--chain", "no", "--out", "OUT/page"),
         "--baseline no: no such folder"),
        (("compare", "--runs", "OUT/held", "no"), "--runs no: no such folder, expected a run or a sealed bundle"),
        (("compare", "--runs", "OUT/held"), "--runs: found 1, expected 2 or more"),
        (("compare", "--chain", "OUT/held"), "--baseline: found none, expected it beside the other one, or --runs"),
        (("ensemble", "--runs", "OUT/held", "OUT/held", "--data", "DATA", "--out", "OUT/e"), "two runs named held"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else "",
)  # fmt: skip
def test_a_mistake_is_answered_with_what_to_do_before_anything_heavy_is_imported(arguments, said, tmp_path):
    data, out = tmp_path / "DATA", tmp_path / "OUT"
    (tmp_path / "TEST" / "test_images").mkdir(parents=True)
    (data / "train_images").mkdir(parents=True)
    (data / "train_series_descriptions.csv").touch()
    (out / "held").mkdir(parents=True)
    (out / "held" / "recipe.json").write_text('{"name": "demo"}')
    (out / "file").touch()
    words = [str(tmp_path / word) if Path(word).parts[0] in ("DATA", "OUT", "TEST") else word for word in arguments]
    status, printed, errors, heavy = answer(*words)
    assert (status in (1, 2), printed, heavy) == (True, "", [])
    assert said in errors
    assert errors.rstrip("\n").count("\n") == 0 or errors.startswith("usage: ")
    assert sorted(path.name for path in out.iterdir()) == ["file", "held"], "nothing was written"


def test_where_a_run_stands_is_said_without_anything_heavy(tmp_path):
    (tmp_path / "recipe.json").write_text('{"name": "demo", "stages": {"axial_xy": {"fit": {"epochs": 6}}}}')
    status, out, errors, heavy = answer("train", "--status", tmp_path)
    assert (status, errors, heavy) == (0, "", [])
    assert "0 of 6" in out


def test_the_names_that_are_checked_first_are_those_of_the_tables():
    assert set(names.RECIPES) == {"demo", "model2", "strong"} <= set(RECIPES)
    assert {stage.name.partition("-")[0] for stage in STAGES} == set(names.STAGES)
    assert names.USES == external_points.USES


def test_a_recipe_that_a_program_adds_is_known(monkeypatch):
    monkeypatch.setitem(RECIPES, "mine", RECIPES["demo"])
    names.check_recipe("mine")
