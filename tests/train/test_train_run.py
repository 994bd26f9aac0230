"""Whole trainings of tiny networks through the real entry point: what is dropped or refused, several processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import train_tiny
from lumbar.bundle.manifest import read_manifest
from lumbar.bundle.probes import check_probes
from lumbar.bundle.weights import load_networks
from lumbar.config import LevelSequenceConfig
from lumbar.models.backbone import create_timm
from lumbar.run import predict
from lumbar.stages.classify import classify
from lumbar.study import read_study
from lumbar_train.__main__ import main
from lumbar_train.data.folds import FULL, with_seeds
from lumbar_train.data.mixing import MixConfig
from lumbar_train.data.usable import NO_SERIES
from lumbar_train.engine.checkpoint import load_weights
from lumbar_train.outputs.store import read_localisations, read_logits
from lumbar_train.recipes import RECIPES, with_full_epochs
from lumbar_train.report import report_on
from lumbar_train.stages import aggregate_folds
from lumbar_train.stages.denoise import DenoiseConfig
from train_processes import environment, run_torchrun, tiny_command, two_machines

PROJECT = Path(__file__).parents[2]
CLASSIFIERS = ("sagittal_classifier", "axial_subarticular", "axial_all")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def finished(tiny_cohort: Path, tmp_path_factory) -> Path:
    """A whole training in one process."""
    folder = tmp_path_factory.mktemp("tiny") / "Läufe neu" / "run 1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # bits depend on the number of threads
        assert train_tiny.train(tiny_cohort, folder) == 0
    return folder


ONE_FIT = ("--stages", "axial_xy", "--folds", "0")


def test_weights_are_kept_once_and_are_enough_to_go_on(finished, tiny_cohort, tmp_path, capsys):
    """A complete fit's own copies and its checkpoint are gone; going on reads what the stage left, and fits nothing."""
    run = copy_of(finished, tmp_path)
    assert [path for path in run.rglob("*") if path.name in ("last.safetensors", "best.safetensors")] == []
    assert list(run.rglob("checkpoint.pt")) == []
    names = [path.relative_to(run) for path in sorted(run.rglob("*.safetensors"))]
    assert len(names) == 7 * 3  # each stage's two folds and the fit on all data
    capsys.readouterr()
    assert train_tiny.train(tiny_cohort, run, "--stages", "sagittal_z,axial_all", "--resume") == 0
    assert ", epoch " not in capsys.readouterr().out
    for name in names:
        assert (run / name).read_bytes() == (finished / name).read_bytes(), name


ON = ("--set", "recipe.fusion=on", "--set", "recipe.fusion.views=1", "--set", "recipe.fusion.epochs=2", "--resume")


def test_a_fusion_joins_a_run_that_is_whole_and_ships_what_was_scored(finished, tiny_cohort, tmp_path, monkeypatch):
    """Eight studies decide nothing, so it is kept by word; only it and the aggregator are fitted."""
    real = aggregate_folds.decide
    monkeypatch.setattr(aggregate_folds, "decide", lambda *arrays: replace(real(*arrays), is_kept=True))
    run = copy_of(finished, tmp_path)
    assert train_tiny.train(tiny_cohort, run, *ON) == 0
    for path in finished.glob("*/*.safetensors"):
        is_same = (run / path.relative_to(finished)).read_bytes() == path.read_bytes()
        assert is_same or path.parent.name == "aggregator", path
    folds = pd.read_csv(run / "folds.csv")
    study_id = int(folds.loc[folds["fold"] == 0, "study_id"].iloc[0])
    place = read_localisations(run / "localise", [study_id])[study_id]
    study = read_study(tiny_cohort, "train", study_id, pd.read_csv(tiny_cohort / "train_series_descriptions.csv"))
    manifest = read_manifest(run / "export")
    shipped = load_networks(run / "export", manifest)
    check_probes(shipped, manifest)
    assert shipped.classifiers == (*CLASSIFIERS, "fusion")
    for name in shipped.classifiers:  # the networks of the fold in the place of those that ship
        load_weights(run / name / "fold0.safetensors", shipped.stage(name)[0])
    logits, mask = classify(study, place, shipped)
    stored, shown = read_logits(run / "fusion/oof.parquet", [study_id])
    assert shown.any()
    np.testing.assert_array_equal(mask[-1], shown[0])
    np.testing.assert_allclose(logits[-1] * mask[-1][..., None], stored[0], atol=1e-5)
    frame, _ = predict(tiny_cohort, run / "export", split="train", studies=[study_id])
    assert np.isfinite(frame.iloc[:, 1:].to_numpy(float)).all()
    assert "fusion" in (run / "report/index.html").read_text()


@pytest.mark.slow
def test_without_a_cache_a_run_that_is_killed_and_goes_on_leaves_the_same_weights(
    finished, tiny_data, tmp_path, monkeypatch
):
    """Straight from a folder that nothing writes; the kill comes in mid-fit, and leaves a checkpoint or none."""
    before = {path: path.stat().st_mtime_ns for path in tiny_data.rglob("*")}
    run, command = tmp_path / "run", tiny_command(tiny_data, tmp_path / "run")
    with subprocess.Popen([sys.executable, *command, "--cache", "none"], env=environment()) as process:
        while not (run / "sagittal_xy/fold0/checkpoint.pt").exists() and process.poll() is None:
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (run / "sagittal_xy/fold1.safetensors").exists()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert train_tiny.train(tiny_data, run, "--resume") == 0  # it goes on without a cache, too
    assert not (run / "cache").exists()
    assert len(list((run / "index").glob("*.json.gz"))) == 8
    assert {path: path.stat().st_mtime_ns for path in tiny_data.rglob("*")} == before
    names = sorted(path.relative_to(finished) for path in finished.rglob("*.safetensors"))
    assert names == sorted(path.relative_to(run) for path in run.rglob("*.safetensors"))
    for name in names:
        assert (run / name).read_bytes() == (finished / name).read_bytes(), name
    tables = [pd.read_parquet(folder / "aggregator/oof.parquet") for folder in (finished, run)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


@pytest.mark.slow
def test_the_report_counts_what_was_dropped_and_scores_the_rest(finished, tiny_data, tmp_path):
    """A study whose images are gone stands in the tables, but not in the run."""
    run = copy_of(finished, tmp_path)
    table = pd.read_csv(tiny_data / "train.csv", dtype=object)
    (tiny_data / "train.csv").unlink()  # it is a link
    pd.concat([table, table[:1].assign(study_id="299")]).to_csv(tiny_data / "train.csv", index=False)
    (run / "dropped.json").write_text(json.dumps({"studies": [299], "counts": {NO_SERIES: 1}}))
    page, evaluation = report_on(run, tiny_data)
    assert evaluation.study_ids.tolist() == list(range(201, 209))
    assert evaluation.figures()["dropped"] == {NO_SERIES: 1}
    assert NO_SERIES in page.read_text()


AGGREGATOR = ("--stages", "aggregator")


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("fold0.safetensors", ONE_FIT),
        ("log.csv", ONE_FIT),
        ("oof.parquet", AGGREGATOR),
        ("weights_manifest.json", AGGREGATOR),
        ("axial_xy.full.safetensors", AGGREGATOR),
    ],
)
@pytest.mark.slow
def test_a_full_disk_is_one_line_wherever_it_strikes(
    finished, tiny_cohort, tmp_path, capsys, monkeypatch, name, stages
):
    """The write of one file fails as a full disk makes it fail; a second try ends well."""
    run = copy_of(finished, tmp_path) if stages == AGGREGATOR else tmp_path / "run"
    real = os.replace

    def replace(source, target, **kwargs):
        if str(target).endswith(name):
            raise OSError(28, "No space left on device", str(target))
        return real(source, target, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        assert train_tiny.train(tiny_cohort, run, *stages, "--overwrite") == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "lumbar_train: " in line
    assert name in line
    assert "the disk is full" in line
    assert not list(run.rglob(".tmp-*"))
    assert train_tiny.train(tiny_cohort, run, *stages, "--resume") == 0


# Leaks


@pytest.mark.parametrize(
    ("table", "reader"),
    [
        ("sagittal_xy/oof", "sagittal_z"),
        ("localise/levels", "sagittal_classifier"),
        ("localise/points", "axial_subarticular"),
        ("localise/axial", "axial_all"),
        ("axial_all/oof", "aggregator"),
    ],
)
def test_an_in_fold_prediction_is_refused_by_the_stage_that_reads_it(
    finished, tiny_cohort, tmp_path, capsys, table, reader
):
    run = copy_of(finished, tmp_path)
    path = run / f"{table}.parquet"
    frame = pd.read_parquet(path)
    study = frame["study_id"].iloc[0]
    frame.loc[frame["study_id"] == study, "fold"] = 1 - frame.loc[frame["study_id"] == study, "fold"]
    frame.to_parquet(path, index=False)
    assert train_tiny.train(tiny_cohort, run, "--stages", reader, "--folds", "0,1", "--overwrite") == 1
    assert f"{path}: study {study} was predicted by fold" in capsys.readouterr().err


def test_weights_that_have_seen_a_study_do_not_localise_it(finished, tiny_cohort, tmp_path, capsys):
    run = copy_of(finished, tmp_path)
    for suffix in ("safetensors", "seen.json"):
        shutil.copy(run / f"axial_xy/fold1.{suffix}", run / f"axial_xy/fold0.{suffix}")
    assert train_tiny.train(tiny_cohort, run, "--stages", "localise", "--folds", "0,1", "--overwrite") == 1
    assert "axial_xy/fold0.safetensors: fold 1's fit has seen study" in capsys.readouterr().err
    shutil.copy(run / "axial_xy/full.safetensors", run / "axial_xy/fold0.safetensors")
    assert train_tiny.train(tiny_cohort, run, "--stages", "localise", "--folds", "0,1", "--overwrite") == 1
    assert "what they have seen is unknown" in capsys.readouterr().err


def test_what_each_fit_has_seen_is_noted_and_excludes_the_held_out(finished):
    fold_of = pd.read_csv(finished / "folds.csv").set_index("study_id")["fold"].to_dict()
    for stage in ("sagittal_xy", "sagittal_z", "axial_xy", *CLASSIFIERS, "aggregator"):
        for name, fold in (("fold0", 0), ("fold1", 1), ("full", FULL)):
            seen = json.loads((finished / stage / f"{name}.seen.json").read_text())
            assert seen["fold"] == fold
            assert seen["studies"] == sorted(k for k in fold_of if fold_of[k] != fold)


def copy_of(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("report", "export"))


# Several processes, several seeds


@pytest.mark.slow
@pytest.mark.usefixtures("unmeasured_children")
def test_two_processes_leave_what_one_leaves(finished, tiny_cohort, tmp_path):
    done = run_torchrun(2, tiny_cohort, tmp_path / "many", "--jobs", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("--jobs 2 is off") == 1
    one, many = files_of(finished), files_of(tmp_path / "many")
    assert many == one
    tolerances = {
        "sagittal_xy": 0.1,
        "localise/levels": 0.1,
        "localise/axial": 0.1,
        "aggregator": 0.02,
    }  # mm, probability
    for name, atol in (tolerances | dict.fromkeys(CLASSIFIERS, 0.15)).items():
        name = name if "/" in name else f"{name}/oof"
        assert_close(*(pd.read_parquet(run / f"{name}.parquet") for run in (finished, tmp_path / "many")), atol)
    for stage in ("sagittal_z", "axial_xy", "axial_all"):
        logs = [pd.read_csv(run / stage / "fold0/log.csv") for run in (finished, tmp_path / "many")]
        assert logs[1]["loss"].tolist() == pytest.approx(logs[0]["loss"].tolist(), rel=1e-3)
        assert logs[1]["samples"].tolist() == logs[0]["samples"].tolist()


def assert_close(one: pd.DataFrame, many: pd.DataFrame, atol: float) -> None:
    """The same rows in the same order; numbers to what sums in another order become over a whole training."""
    assert list(one.columns) == list(many.columns)
    assert len(one) == len(many)
    for name in one.columns:
        if one[name].dtype.kind == "f":
            np.testing.assert_allclose(many[name], one[name], atol=atol, rtol=0, err_msg=name)
        elif name not in ("xyz_mm", "left_px", "right_px"):
            assert many[name].tolist() == one[name].tolist(), name


def files_of(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and "cache" not in path.parts)


@pytest.mark.slow
@pytest.mark.usefixtures("unmeasured_children")
def test_a_refusal_of_the_first_process_ends_both_machines_with_one_line_each(tiny_cohort, tmp_path):
    """Two machines of one process each, as the README starts them."""
    said = [tmp_path / f"machine{rank}.txt" for rank in (0, 1)]
    with two_machines(said, tiny_cohort, tmp_path / "run", "--folds", "7") as machines:
        for machine in machines:
            machine.wait(timeout=1500)
    for machine, errors in zip(machines, (path.read_text() for path in said), strict=True):
        assert machine.returncode != 0
        lines = [line for line in errors.splitlines() if line.startswith("lumbar_train: --folds: found '7'")]
        assert len(lines) == 1, errors[-3000:]
        assert "lumbar_train/__main__.py" not in errors  # no traceback of ours


def test_further_seeds_are_further_fits_on_all_data():
    assert with_seeds([0, 1, FULL], 3) == [0, 1, -1, -2, -3]
    assert with_seeds([0, 1], 3) == [0, 1]
    assert RECIPES["strong"]().full_seeds > 1 == RECIPES["demo"]().full_seeds


def test_epochs_of_the_fit_that_ships_leave_the_folds_as_they_are():
    recipe = RECIPES["demo"]()
    longer = with_full_epochs(recipe, ["sagittal_xy=24", "axial_all=20"])
    for stage in ("sagittal_xy", "axial_all"):
        assert longer.stages[stage].for_fold(0).fit.epochs == recipe.stages[stage].for_fold(0).fit.epochs
    assert longer.stages["sagittal_xy"].for_fold(FULL).fit.epochs == 24
    assert longer.stages["axial_all"].for_fold(FULL).fit.epochs == 20
    assert longer.stages["axial_xy"] == recipe.stages["axial_xy"]


@pytest.mark.parametrize("word", ["sagital_xy=24", "sagittal_xy", "sagittal_xy=0", "sagittal_xy=many"])
def test_epochs_of_no_stage_or_no_number_are_one_line(word, tmp_path, capsys):
    data = train_tiny.empty_competition(tmp_path)
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "run"), "--full-epochs", word]) != 0
    said = capsys.readouterr().err.strip()
    assert f"found {word!r}, expected STAGE=N" in said
    assert "\n" not in said
    assert not (tmp_path / "run").exists()


def test_a_run_with_all_that_strong_adds_goes_from_end_to_end(tiny_cohort, tmp_path, monkeypatch, capsys):
    """Mixing, a second step on the metric, denoising with one retraining, levels as a sequence, two seeds that ship."""
    recipe = train_tiny.tiny()
    stages = {
        name: replace(s, mixing=MixConfig(0.3, 0.3), fit=replace(s.fit, epochs=1, metric_epochs=1, metric_lr=1e-4))
        if name in CLASSIFIERS
        else s
        for name, s in recipe.stages.items()
    }
    stages["aggregator"] = replace(stages["aggregator"], network=LevelSequenceConfig(hidden=8, confidence=True))
    suspects = DenoiseConfig(below=0.9, most=0.05)
    tiny = replace(recipe, stages=stages, denoise=suspects, full_seeds=2)
    monkeypatch.setitem(RECIPES, "tiny", lambda: tiny)
    run = tmp_path / "run"
    assert train_tiny.train(tiny_cohort, run) == 0
    n = len(pd.read_parquet(run / "denoise/suspect_labels.parquet"))
    assert 0 < n <= 0.05 * 200
    counts = json.loads((run / "report/figures.json").read_text())["dropped"]
    assert sum(count for reason, count in counts.items() if reason.startswith("labels: ")) == n
    assert not (run / "axial_all-first/full.safetensors").exists()
    for name in ("fold0", "full", "full2"):
        assert (run / f"axial_all/{name}-metric/log.csv").is_file()
    manifest = json.loads((run / "export/weights_manifest.json").read_text())
    assert [e["fold"] for e in manifest["weights"] if e["stage"] == "aggregator"] == [-1, -2]
    one, two = (load_file(run / f"axial_all/{name}.safetensors") for name in ("full", "full2"))
    assert any(not torch.equal(one[key], two[key]) for key in one)
    assert list(run.rglob("last.safetensors")) == []
    before = (run / "axial_all/full.safetensors").read_bytes()
    capsys.readouterr()
    assert train_tiny.train(tiny_cohort, run, "--stages", "axial_all", "--resume") == 0  # both rounds are there
    assert ", epoch " not in capsys.readouterr().out
    assert (run / "axial_all/full.safetensors").read_bytes() == before
    networks = load_networks(run / "export", read_manifest(run / "export"))
    check_probes(networks, read_manifest(run / "export"))
    assert len(networks.stage("sagittal_xy")) == 2


@pytest.mark.slow
def test_a_local_checkpoint_is_where_a_fit_starts(finished, tiny_cohort, tmp_path):
    """At a rate of almost nothing the fit leaves what the file holds."""
    torch.manual_seed(11)
    state = create_timm(train_tiny.SMALL).state_dict()
    save_file(state, tmp_path / "small.safetensors")
    recipe = train_tiny.tiny()
    stage = recipe.stages["sagittal_z"]
    slow = replace(recipe, stages=recipe.stages | {"sagittal_z": replace(stage, fit=replace(stage.fit, lr=1e-12))})
    run = copy_of(finished, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "tiny", lambda: slow)
        file = ("--backbone-weights", str(tmp_path / "small.safetensors"), "--overwrite")
        assert train_tiny.train(tiny_cohort, run, "--stages", "sagittal_z", "--folds", "0,1", *file) == 0
    weights = load_file(run / "sagittal_z/fold0.safetensors")
    name = "layer4.0.conv1.weight"
    assert torch.allclose(weights[f"backbone.network.{name}"], state[name], atol=1e-6)
    first = weights["backbone.network.conv1.0.weight"]
    assert torch.allclose(first, state["conv1.0.weight"].sum(1, keepdim=True), atol=1e-6)
