"""What fits of a run that is gone on with begin from, and which of them are not fitted again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import train_tiny
from lumbar.models.backbone import create_timm

WORDS = ("--set", "*.epochs=1", "--set", "sagittal_xy.repeats=1")
LOCATE = ("--stages", "sagittal_xy,sagittal_z")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    train_tiny.quick(monkeypatch)


@pytest.fixture(scope="module")
def folds_only(tiny_cohort, tmp_path_factory) -> Path:
    """A run whose first two localisers are fitted on both folds, from random weights."""
    run = tmp_path_factory.mktemp("begun") / "run"
    with pytest.MonkeyPatch.context() as patch:
        train_tiny.quick(patch)
        assert train_tiny.train(tiny_cohort, run, *WORDS, *LOCATE, "--folds", "0,1") == 0
    return run


@pytest.fixture
def run(folds_only, tmp_path) -> Path:
    return shutil.copytree(folds_only, tmp_path / "run")


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    torch.manual_seed(0)
    save_file(create_timm(train_tiny.SMALL).state_dict(), tmp_path / "backbone.safetensors")
    return tmp_path / "backbone.safetensors"


def starts_of(run: Path) -> dict[str, str]:
    return json.loads((run / "recipe.json").read_text())["start"]


def test_weights_are_not_asked_for_where_no_fit_is_still_to_begin(run, tiny_cohort, tmp_path, capsys):
    """No pretrained weights fit the tiny backbone, so that asking for them is refused."""
    more = (*WORDS, "--pretrained", "--folds", "0,1", *LOCATE)
    assert train_tiny.train(tiny_cohort, run, *more, "--resume") == 0
    assert train_tiny.train(tiny_cohort, tmp_path / "other", *more, "--resume", str(run)) == 0
    whole = (*WORDS, "--pretrained", "--resume")
    assert train_tiny.train(tiny_cohort, run, *whole, "--stages", "sagittal_xy") == 0, "a network without a backbone"
    capsys.readouterr()
    for left in (("--folds", "full", *LOCATE), ("--stages", "sagittal_z", "--full-seeds", "2"), ()):
        assert train_tiny.train(tiny_cohort, run, *whole, *left) == 1
        assert "backbone resnet10t: altered for this recipe" in capsys.readouterr().err
    assert train_tiny.train(tiny_cohort, tmp_path / "new", *WORDS, "--pretrained", *LOCATE) == 1


def test_fits_that_start_otherwise_than_those_beside_them_are_named(run, tiny_cohort, checkpoint, capsys):
    assert set(starts_of(run).values()) == {"random weights"}
    assert "sagittal_xy" not in starts_of(run)
    words = (*WORDS, *LOCATE, "--resume", "--backbone-weights", str(checkpoint))
    assert train_tiny.train(tiny_cohort, run, *words, "--folds", "0,1") == 0
    assert "began from" not in capsys.readouterr().out, "no fit is still to begin"
    assert train_tiny.train(tiny_cohort, run, *words, "--folds", "full") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "began from" in line]
    assert len(lines) == 1
    assert "recipe.json: fits of sagittal_z began from random weights, those still to begin start from" in lines[0]
    starts = starts_of(run)
    assert starts["sagittal_z"] == "random weights"
    assert starts["axial_all"].startswith("a checkpoint of hash ")


def test_a_run_that_has_not_noted_its_start_goes_on_without_a_word(run, tiny_cohort, checkpoint, capsys):
    noted = json.loads((run / "recipe.json").read_text())
    del noted["start"]
    (run / "recipe.json").write_text(json.dumps(noted))
    words = ("--resume", "--backbone-weights", str(checkpoint), "--folds", "full")
    assert train_tiny.train(tiny_cohort, run, *WORDS, *LOCATE, *words) == 0
    assert "began from" not in capsys.readouterr().out
    assert "sagittal_z" not in starts_of(run)


def test_fits_that_stay_although_what_they_learnt_from_was_made_anew_are_named(run, tiny_cohort, capsys):
    words = (*WORDS, "--folds", "0,1")
    assert train_tiny.train(tiny_cohort, run, *words, *LOCATE, "--resume") == 0
    assert "weights stay" not in capsys.readouterr().out
    words = (*words, "--set", "sagittal_xy.lr=0.010001")  # so little that the points found stay as many
    assert train_tiny.train(tiny_cohort, run, *words, "--stages", "sagittal_xy", "--overwrite") == 0
    before = (run / "sagittal_z/fold0.safetensors").read_bytes()
    assert train_tiny.train(tiny_cohort, run, *words, *LOCATE, "--resume") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "weights stay" in line]
    assert lines == [
        "sagittal_z: on fold0, fold1 weights stay, though what they learnt from was made anew since, and predict anew; "
        "--stages sagittal_z --overwrite fits them again"
    ]
    assert (run / "sagittal_z/fold0.safetensors").read_bytes() == before
