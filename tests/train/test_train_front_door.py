"""``lumbar_train.train``: what the command line does, as a function that raises and returns."""

from __future__ import annotations

import inspect
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import lumbar_train
import train_tiny
from lumbar.errors import CohortError
from lumbar.io.arguments import python_word
from lumbar_train.__main__ import TRAIN_OPTIONS, _parser, main
from lumbar_train.errors import TrainingError
from lumbar_train.pipeline.options import TrainOptions, as_folds, as_stages, as_words
from lumbar_train.run import thread_count, torch_threads

PROJECT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    yield
    torch.set_num_threads(1)


def test_importing_the_package_does_not_load_torch():
    code = "import sys, lumbar_train as t; assert not {'torch', 'numba', 'timm'} & set(sys.modules); print(t.__all__)"
    path = f"{PROJECT / 'kernel'}:{PROJECT / 'src'}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "'train'" in done.stdout
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        _ = lumbar_train.fit


def test_every_option_of_the_command_line_is_a_keyword_with_the_same_default():
    args = vars(_parser().parse_args(["train", "--data", "d", "--out", "o"]))
    parameters = inspect.signature(lumbar_train.train).parameters
    other = {"command", "action", "plan", "status"}  # the last two print a table and train nothing
    assert set(args) - other == set(TRAIN_OPTIONS) == set(parameters) - {"on_refusal"}
    for name in set(TRAIN_OPTIONS) - {"data", "out"}:
        default = parameters[name].default
        assert (tuple(args[name]) if isinstance(args[name], list) else args[name]) == default, name
    text = inspect.getdoc(lumbar_train.TrainOptions)
    assert [name for name in set(parameters) - {"on_refusal"} if f"{name}: " not in text] == []


def test_the_options_in_one_value_are_those_of_the_function():
    assert set(TrainOptions.__dataclass_fields__) == set(TRAIN_OPTIONS)
    defaults = {name: p.default for name, p in inspect.signature(lumbar_train.train).parameters.items()}
    options = TrainOptions(Path("d"), Path("o"))
    for name in set(TRAIN_OPTIONS) - {"data", "out"}:
        assert getattr(options, name) == defaults[name], name


def test_the_function_trains_what_the_command_line_trains(tiny_cohort, tmp_path):
    more = ["--set", "axial_xy.epochs=1", "--stages", "sagittal_xy,axial_xy", "--folds", "0,1", "--seed", "3"]
    assert train_tiny.train(tiny_cohort, tmp_path / "called", *more) == 0
    trained = lumbar_train.train(
        str(tiny_cohort),
        tmp_path / "imported",
        recipe="tiny",
        overrides={"axial_xy.epochs": 1},
        stages=["sagittal_xy", "axial_xy"],
        folds=[0, 1],
        seed=3,
        workers=0,
        device="cpu",
        amp="off",
    )
    assert trained == lumbar_train.TrainedRun(tmp_path / "imported")  # nothing to export or to report yet
    files = sorted(path.relative_to(tmp_path / "called") for path in (tmp_path / "called").glob("*_xy/*.safetensors"))
    assert len(files) == 4
    for file in files:
        one, other = load_file(tmp_path / "called" / file), load_file(tmp_path / "imported" / file)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), file
    for name in ("folds.csv", "recipe.json", "dropped.json"):
        assert (tmp_path / "called" / name).read_bytes() == (tmp_path / "imported" / name).read_bytes(), name
    tables = [pd.read_parquet(tmp_path / run / "sagittal_xy/oof.parquet") for run in ("called", "imported")]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"recipe": "model3"}, CohortError, "recipe 'model3': unknown"),
        ({"points_use": "both"}, TrainingError, "points_use: found 'both', expected one of beside, instead"),
        ({"amp": "fp8"}, TrainingError, "amp: found 'fp8'"),
        ({"jobs": 0}, TrainingError, "jobs: found 0, expected 1 or more"),
        ({"workers": -1}, TrainingError, "workers: found -1, expected 0 or more"),
        ({"loaders": -2}, TrainingError, "loaders: found -2"),
        ({"ship": "best"}, TrainingError, "ship: found 'best', expected one of full, folds, all"),
        ({"time_limit": "soon"}, CohortError, "time limit 'soon': expected a duration such as 8.5h"),
        ({"time_limit": 0}, TrainingError, "--time-limit: found 0, expected more than 0"),
        ({"init": "nowhere"}, CohortError, "--init nowhere: no such folder, expected the folder of a run"),
        ({"resume": "nowhere"}, CohortError, "--resume nowhere: no such folder, expected a run folder"),
        ({"overrides": {"axial_all.sise": 3}}, CohortError, "has no field 'sise', expected 'size'"),
        ({"full_epochs": {"axial": 3}}, CohortError, "found 'axial=3', expected STAGE=N"),
        ({"data": "nowhere"}, CohortError, "nowhere"),
    ],
)
def test_what_cannot_be_raises_and_writes_nothing(tiny_cohort, tmp_path, options, kind, message):
    given = {"data": tiny_cohort, "out": tmp_path / "run", "device": "cpu", "workers": 0} | options
    with pytest.raises(kind, match=message):
        lumbar_train.train(**given)
    assert not (tmp_path / "run/folds.csv").exists()


@pytest.mark.parametrize("stages", [[], ["axial"]])
def test_stages_that_are_none_are_refused(tiny_cohort, tmp_path, stages):
    with pytest.raises(CohortError, match=r"--stages: found (none|axial), expected"):
        lumbar_train.train(
            tiny_cohort, tmp_path / "run", recipe="tiny", stages=stages, folds="0", device="cpu", workers=0
        )


def test_options_of_the_command_line_are_checked_as_well(tmp_path, capsys):
    assert main(["train", "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--jobs", "0"]) == 1
    assert capsys.readouterr().err == "lumbar_train: jobs: found 0, expected 1 or more\n"


def test_values_become_the_words_of_the_command_line():
    assert as_words({"axial_all.size": 96, "*.widths": (8, 16)}) == ("axial_all.size=96", "*.widths=8,16")
    assert as_words(["a=1", Path("b")]) == ("a=1", "b")
    assert as_words("a=1") == ("a=1",)
    assert as_folds([0, 1, "full"]) == as_folds("0,1,full") == "0,1,full"
    assert as_folds(None) is None
    assert as_stages("a, b") == as_stages(["a", "b"]) == ("a", "b")
    assert as_stages(None) is as_stages("") is None


def test_the_command_of_a_run_trains_the_same(tmp_path, monkeypatch):
    """It stands in refusals: whoever types it in must not get other weights."""
    options = TrainOptions(
        Path("my data"),
        tmp_path,
        overrides=("*.epochs=3", "axial_all.size=96"),
        full_epochs=("axial_all=9",),
        full_seeds=2,
        backbone="resnet18",
        pretrained=False,
        backbone_weights=("a=b.pth",),
        points=Path("p.csv"),
        points_use="instead",
        seed=5,
        amp="off",
    )
    asked = []
    monkeypatch.setattr("lumbar_train.run.train_with", lambda options, on_refusal: asked.append(options))
    words = shlex.split(options.command())
    assert words[:4] == [python_word(), "-m", "lumbar_train", "train"]
    arguments = vars(_parser().parse_args(words[3:]))
    lumbar_train.train(**{name: arguments[name] for name in TRAIN_OPTIONS})
    assert asked == [replace(options, resume=True)]
    assert options.changes() == ("backbone=resnet18", "full-epochs axial_all=9", "*.epochs=3", "axial_all.size=96")


def test_defaults_are_left_out_of_the_command():
    assert TrainOptions(Path("d"), Path("o"), workers=3, device="cpu", resume=True).command() == (
        f"{python_word()} -m lumbar_train train --data d --recipe demo --out o --resume"
    )


@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        ({}, 8),
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "0"}, 1),
        ({"OMP_NUM_THREADS": "4,2"}, 8),
        ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}, 4),
        ({"LOCAL_WORLD_SIZE": "16"}, 1),
    ],
)
def test_threads_are_the_users_choice_or_a_share_of_the_cores(monkeypatch, variables, threads):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert thread_count() == threads


def test_the_callers_number_of_threads_comes_back():
    def fail() -> None:
        with torch_threads(2):
            assert torch.get_num_threads() == 2
            raise KeyError

    torch.set_num_threads(1)
    with pytest.raises(KeyError):
        fail()
    assert torch.get_num_threads() == 1
