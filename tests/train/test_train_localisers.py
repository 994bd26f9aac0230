"""``train --localisers RUN``: a run on the localisers of another one fits classifiers alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import train_tiny
from lumbar.bundle.manifest import file_sha256
from lumbar_train.__main__ import main
from lumbar_train.outputs import take_over as module
from lumbar_train.stages import fitting

TAKEN = ("sagittal_xy", "sagittal_z", "axial_xy", "localise")
CLASSIFIERS = ("sagittal_classifier", "axial_subarticular", "axial_all")
LOCALISERS_SET = ["--set", "axial_xy.epochs=2"]
QUICK = [word for name in CLASSIFIERS for word in ("--set", f"{name}.epochs=1")]
OTHER = ["--seed", "5", *QUICK, "--set", "axial_all.size=32"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    train_tiny.quick(monkeypatch)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def begun(monkeypatch) -> list[str]:
    """The stages whose fits were begun, in this process."""
    stages: list[str] = []
    real = fitting.fit

    def fit(*args, out_dir, **more):
        stages.append(out_dir.parts[-2])
        return real(*args, out_dir=out_dir, **more)

    monkeypatch.setattr(fitting, "fit", fit)
    return stages


@pytest.fixture(scope="module")
def first(tiny_cohort, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("first") / "run"
    with pytest.MonkeyPatch.context() as patch:
        train_tiny.quick(patch)
        assert train_tiny.train(tiny_cohort, run, *QUICK, *LOCALISERS_SET) == 0
    return run


def taken_files(run: Path) -> dict[str, str]:
    """Hashes of what is taken over."""
    paths = [path for name in TAKEN for path in (run / name).rglob("*") if path.is_file() and path.suffix]
    return {str(path.relative_to(run)): file_sha256(path) for path in [*paths, run / "folds.csv"]}


def last_line(capsys) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def test_classifiers_of_another_seed_and_size_on_the_same_localisers(first, tiny_cohort, tmp_path, begun, capsys):
    run, theirs = tmp_path / "second", taken_files(first)
    assert train_tiny.train(tiny_cohort, run, *OTHER, "--localisers", str(first)) == 0
    assert set(begun).isdisjoint(TAKEN)
    assert set(begun) == set(CLASSIFIERS)
    assert taken_files(run) == theirs == taken_files(first)
    assert f"localisers and folds taken over from {first} (" in capsys.readouterr().out
    recipe = json.loads((run / "recipe.json").read_text())
    assert recipe["localisers"] == {"run": str(first), "seed": 0}
    assert recipe["stages"]["axial_xy"]["fit"]["epochs"] == 2  # theirs, not the recipe's
    manifest = json.loads((run / "export/weights_manifest.json").read_text())
    assert manifest["training"]["localisers"] == {"run": "run", "seed": 0}
    sha = [
        {entry["sha256"] for entry in json.loads((folder / "export/weights_manifest.json").read_text())["weights"]
         if entry["stage"] == "axial_xy"} for folder in (first, run)
    ]  # fmt: skip
    assert sha[0] == sha[1]

    assert "--localisers" not in json.loads((run / "session.json").read_text())["command"]  # the other run may be gone
    begun.clear()  # gone on with, with and without the option, nothing is fitted again
    for more in (["--localisers", str(first)], []):
        assert train_tiny.train(tiny_cohort, run, *OTHER, "--resume", *more) == 0
    assert train_tiny.train(tiny_cohort, tmp_path / "moved", *OTHER, "--resume", str(run)) == 0
    assert begun == []
    assert train_tiny.train(tiny_cohort, run, *OTHER, "--stages", "axial_all", "--overwrite") == 0
    assert set(begun) == {"axial_all"}
    begun.clear()  # and a third run, from the second, knows whose seed the localisers have
    third = tmp_path / "third"
    assert train_tiny.train(tiny_cohort, third, *QUICK, "--seed", "6", "--localisers", str(run)) == 0
    assert set(begun).isdisjoint(TAKEN)
    assert json.loads((third / "recipe.json").read_text())["localisers"]["seed"] == 0

    capsys.readouterr()
    ensemble = ["ensemble", "--runs", f"a={first}", f"b={run}", "--data", str(tiny_cohort), "--select", "all"]
    assert main([*ensemble, "--own-localisers", "--out", str(tmp_path / "both")]) == 0
    notes = json.loads((tmp_path / "both/ensemble.json").read_text())
    assert notes["own_localisers"] == {}  # equal weights are one set
    assert len(notes["localisers"]) == 2


def test_fitting_localisers_again_beside_those_of_another_run_is_refused(first, tiny_cohort, tmp_path, capsys):
    run = tmp_path / "second"
    words = [*OTHER, "--stages", "axial_subarticular"]
    assert train_tiny.train(tiny_cohort, run, *words, "--localisers", str(first)) == 0
    before = taken_files(run)
    assert train_tiny.train(tiny_cohort, run, *OTHER, "--overwrite") == 1
    assert "--overwrite: found sagittal_xy, sagittal_z, axial_xy, localise to fit again, which" in last_line(capsys)
    assert train_tiny.train(tiny_cohort, run, *OTHER, "--resume", "--set", "axial_xy.lr=0.5") == 1
    assert "axial_xy.lr=0.5: found a value for axial_xy beside --localisers" in last_line(capsys)
    assert taken_files(run) == before
    # The words that the other run was given are no contradiction
    assert train_tiny.train(tiny_cohort, run, *words, *LOCALISERS_SET, "--resume") == 0


def refused(tiny_cohort, out: Path, capsys, *words: str) -> str:
    assert train_tiny.train(tiny_cohort, out, *words) == 1
    return last_line(capsys)


def test_what_cannot_be_taken_over_is_refused_and_leaves_nothing(first, tiny_cohort, tmp_path, capsys):
    out, option = tmp_path / "out", ["--localisers", str(first)]
    table = tmp_path / "folds.csv"
    shutil.copy(first / "folds.csv", table)
    for words, message in (
        (["--localisers", str(tmp_path / "no")], "no such folder, expected a run folder"),
        (["--localisers", str(tmp_path)], "found no run, expected a folder that a training has left"),
        ([*option, "--overwrite"], "found it beside --overwrite"),
        ([*option, "--resume", str(first)], "found it beside --resume FROM"),
        ([*option, "--fold-file", str(table)], "found it beside --fold-file"),
        ([*option, "--set", "axial_xy.lr=0.5"], "found a value for axial_xy beside --localisers"),
        ([*option, "--set", "recipe.n_folds=3"], "found 2 folds in"),
        ([*option, "--folds", "0,7,full"], "--folds: found '7', expected of 0, 1, full"),
        ([*option, "--full-epochs", "axial_xy=7"], "found a value for axial_xy beside --localisers"),
    ):
        assert message in refused(tiny_cohort, out, capsys, *words)
        assert not out.exists()
    assert "expected another one" in refused(tiny_cohort, first, capsys, *option, "--resume")
    part = shutil.copytree(first, tmp_path / "part", ignore=shutil.ignore_patterns("cache", "fold1.done.json"))
    line = refused(tiny_cohort, out, capsys, "--localisers", str(part))
    assert "found sagittal_xy not finished on fold1, expected localisers that are whole" in line
    other = json.loads((part / "recipe.json").read_text()) | {"cohort": "0" * 64}
    (part / "recipe.json").write_text(json.dumps(other))
    assert "found a run of another cohort" in refused(tiny_cohort, out, capsys, "--localisers", str(part))
    (part / "recipe.json").write_text("{")
    assert "recipe.json: not readable" in refused(tiny_cohort, out, capsys, "--localisers", str(part))
    assert not any(out.glob("*/*.safetensors"))
    busy = tmp_path / "busy"
    shutil.copytree(first / "axial_all", busy / "axial_all")
    assert "found another run, expected an empty folder" in refused(tiny_cohort, busy, capsys, *option, "--resume")


def test_a_copy_that_was_interrupted_is_completed(first, tiny_cohort, tmp_path, capsys, monkeypatch, begun):
    run, real = tmp_path / "second", module._copy
    words = [*OTHER, "--stages", "axial_subarticular"]

    def stop(path, target, linked):
        if path.parent.name == "localise":
            raise KeyboardInterrupt
        real(path, target, linked)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_copy", stop)
        assert train_tiny.train(tiny_cohort, run, *words, "--localisers", str(first)) == 1
    assert "taken over in part" in refused(tiny_cohort, run, capsys, *words, "--resume")
    assert train_tiny.train(tiny_cohort, run, *words, "--localisers", str(first), "--resume") == 0
    assert set(begun) == {"axial_subarticular"}
    assert taken_files(run) == taken_files(first)


def test_a_plan_leaves_out_what_is_taken_over(first, tiny_cohort, capsys):
    words = ["train", "--data", str(tiny_cohort), "--recipe", "tiny", "--out", "runs/next", "--plan", "--device", "cpu"]
    assert main([*words, "--localisers", str(first)]) == 0
    said = capsys.readouterr().out
    assert "axial_all" in said
    assert "axial_xy" not in said
