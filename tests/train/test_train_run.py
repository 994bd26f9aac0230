"""Whole trainings of tiny networks through the real entry point: what is dropped or refused, several processes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
from lumbar_train.__main__ import main
from lumbar_train.data.folds import FULL, with_seeds
from lumbar_train.data.mixing import MixConfig
from lumbar_train.data.tables import read_cohort
from lumbar_train.data.usable import NO_SERIES, NO_SLICE, as_trained
from lumbar_train.recipes import RECIPES, with_full_epochs
from lumbar_train.report import report_on
from lumbar_train.stages.denoise import DenoiseConfig

PROJECT = Path(__file__).parents[2]
CLASSIFIERS = ("sagittal_classifier", "axial_subarticular", "axial_all")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    return train_tiny.write_cohort(tmp_path_factory.mktemp("tiny") / "cohort")


@pytest.fixture
def data(pristine: Path, tmp_path: Path) -> Path:
    """A copy to spoil; slices are hard links."""
    return shutil.copytree(pristine, tmp_path / "data", copy_function=lambda a, b: Path(b).hardlink_to(a))


@pytest.fixture(scope="module")
def finished(pristine: Path, tmp_path_factory) -> Path:
    """A whole training in one process."""
    folder = tmp_path_factory.mktemp("tiny") / "run"
    assert train(pristine, folder) == 0
    return folder


def train(data: Path, out: Path, *more: str) -> int:
    command = ["train", "--data", str(data), "--recipe", "tiny", "--out", str(out), "--workers", "0"]
    return main([*command, "--device", "cpu", *more])


def edit(path: Path, change) -> None:
    frame = change(pd.read_csv(path, dtype=object))
    path.unlink()
    frame.to_csv(path, index=False)


# What cannot be used


ONE_FIT = ("--stages", "axial_xy", "--folds", "0")


def test_a_study_without_readable_series_is_dropped_and_counted(data, tmp_path, capsys):
    edit(data / "train_series_descriptions.csv", lambda f: f[f["study_id"] != "202"])
    shutil.rmtree(data / "train_images/203")
    for path in [*(data / "train_images/204").glob("*/*.dcm"), *(data / "train_images/205/2050").glob("*.dcm")]:
        path.unlink()
        path.write_text("no image")
    run = tmp_path / "run"
    assert train(data, run, *ONE_FIT) == 0
    said = capsys.readouterr().out
    assert f"left out: 3 × {NO_SERIES}" in said
    assert f"left out: 4 × {NO_SLICE}" in said  # three of study 204, one of study 205
    assert pd.read_csv(run / "folds.csv")["study_id"].tolist() == [201, 205, 206, 207, 208]
    noted = json.loads((run / "dropped.json").read_text())
    assert noted["studies"] == [202, 203, 204]
    assert noted["counts"][NO_SERIES] == 3
    assert train(data, run, *ONE_FIT, "--resume") == 0  # the folds of the run begun are those of what is left


@pytest.mark.slow
def test_the_report_counts_what_was_dropped_and_scores_the_rest(finished, data, tmp_path):
    """A study whose images are gone stands in the tables, but not in the run."""
    run = copy_of(finished, tmp_path)
    edit(data / "train.csv", lambda f: pd.concat([f, f[:1].assign(study_id="299")]))
    (run / "dropped.json").write_text(json.dumps({"studies": [299], "counts": {NO_SERIES: 1}}))
    page, evaluation = report_on(run, data)
    assert evaluation.study_ids.tolist() == list(range(201, 209))
    assert evaluation.figures()["dropped"] == {NO_SERIES: 1}
    assert NO_SERIES in page.read_text()


def test_every_fold_of_a_file_is_fitted(data, tmp_path):
    table = pd.DataFrame({"study_id": range(201, 209), "fold": [0, 1, 2, 0, 1, 2, 0, 1]})
    table.to_csv(tmp_path / "folds.csv", index=False)
    stage = ("--stages", "axial_xy")
    assert train(data, tmp_path / "run", "--fold-file", str(tmp_path / "folds.csv"), *stage) == 0
    fits = {path.stem for path in (tmp_path / "run/axial_xy").glob("*.safetensors")}
    assert fits == {"fold0", "fold1", "fold2", "full"}


def test_a_fold_file_may_name_studies_that_were_dropped_but_no_others(data, tmp_path, capsys):
    shutil.rmtree(data / "train_images/203")
    table = pd.DataFrame({"study_id": range(201, 209), "fold": [0, 1] * 4})
    table.to_csv(tmp_path / "folds.csv", index=False)
    assert train(data, tmp_path / "run", "--fold-file", str(tmp_path / "folds.csv"), *ONE_FIT) == 0
    assert 203 not in set(pd.read_csv(tmp_path / "run/folds.csv")["study_id"])
    table.loc[8] = [999, 0]
    table.to_csv(tmp_path / "folds.csv", index=False)
    capsys.readouterr()
    assert train(data, tmp_path / "other", "--fold-file", str(tmp_path / "folds.csv"), *ONE_FIT) == 1
    assert "study 999 is not in the cohort (1 unknown studies)" in capsys.readouterr().err
    assert not (tmp_path / "other/folds.csv").exists()


def test_a_cohort_without_any_readable_study_is_one_line(data, tmp_path, capsys):
    for path in data.glob("train_images/*/*/*.dcm"):
        path.unlink()
        path.write_text("no image")
    assert train(data, tmp_path / "run") == 1
    assert "none of 8 studies has a readable series" in capsys.readouterr().err


def test_a_run_is_read_as_it_was_trained(data, tmp_path):
    cohort = read_cohort(data, progress=False)
    (tmp_path / "dropped.json").write_text(json.dumps({"studies": [203, 999], "counts": {"because": 1}}))
    kept = as_trained(tmp_path, cohort)
    assert 203 not in kept.study_ids
    assert len(kept.labels) == len(kept) == 7
    assert kept.dropped == {"because": 1}
    assert not (kept.points["study_id"] == 203).any()
    assert kept.fingerprint == cohort.fingerprint
    assert as_trained(tmp_path / "none", cohort).study_ids.tolist() == cohort.study_ids.tolist()


LAST_STEP = ("--stages", "aggregator")


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("fold0.safetensors", ONE_FIT),
        ("log.csv", ONE_FIT),
        ("oof.parquet", LAST_STEP),
        ("weights_manifest.json", LAST_STEP),
        ("axial_xy.full.safetensors", LAST_STEP),
    ],
)
@pytest.mark.slow
def test_a_full_disk_is_one_line_wherever_it_strikes(finished, pristine, tmp_path, capsys, monkeypatch, name, stages):
    """The write of one file fails as a full disk makes it fail; a second try ends well."""
    run = copy_of(finished, tmp_path) if stages == LAST_STEP else tmp_path / "run"
    real = os.replace

    def replace(source, target, **kwargs):
        if str(target).endswith(name):
            raise OSError(28, "No space left on device", str(target))
        return real(source, target, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        assert train(pristine, run, *stages) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "lumbar_train: " in line
    assert name in line
    assert "the disk is full" in line
    assert not list(run.rglob(".tmp-*"))
    assert train(pristine, run, *stages, "--resume") == 0


# Leaks


def test_a_study_in_two_folds_is_refused(data, tmp_path, capsys):
    table = pd.DataFrame({"study_id": [*range(201, 209), 201], "fold": [0, 1] * 4 + [1]})
    table.to_csv(tmp_path / "folds.csv", index=False)
    assert train(data, tmp_path / "run", "--fold-file", str(tmp_path / "folds.csv")) == 1
    assert "study 201 is in folds 0, 1, expected one" in capsys.readouterr().err


def test_upsampling_before_the_split_is_refused(data, tmp_path, capsys):
    """A minority study is copied under another name; the copies would lie on both sides."""
    shutil.copytree(data / "train_images/201", data / "train_images/901")
    for name in ("train.csv", "train_series_descriptions.csv", "train_label_coordinates.csv"):
        edit(data / name, lambda f: pd.concat([f, f[f["study_id"] == "201"].assign(study_id="901")]))
    table = pd.DataFrame({"study_id": [*range(201, 209), 901], "fold": [0, 1] * 4 + [1]})
    table.to_csv(tmp_path / "folds.csv", index=False)
    assert train(data, tmp_path / "run", "--fold-file", str(tmp_path / "folds.csv")) == 1
    assert "study 901 in fold 1 holds the same images as study 201 in fold 0" in capsys.readouterr().err
    table.loc[8, "fold"] = 0
    table.to_csv(tmp_path / "folds.csv", index=False)
    assert train(data, tmp_path / "run", "--fold-file", str(tmp_path / "folds.csv"), *ONE_FIT) == 0


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
    finished, pristine, tmp_path, capsys, table, reader
):
    run = copy_of(finished, tmp_path)
    path = run / f"{table}.parquet"
    frame = pd.read_parquet(path)
    study = frame["study_id"].iloc[0]
    frame.loc[frame["study_id"] == study, "fold"] = 1 - frame.loc[frame["study_id"] == study, "fold"]
    frame.to_parquet(path, index=False)
    assert train(pristine, run, "--stages", reader, "--folds", "0,1") == 1
    assert f"{path}: study {study} was predicted by fold" in capsys.readouterr().err


def test_weights_that_have_seen_a_study_do_not_localise_it(finished, pristine, tmp_path, capsys):
    run = copy_of(finished, tmp_path)
    for suffix in ("safetensors", "seen.json"):
        shutil.copy(run / f"axial_xy/fold1.{suffix}", run / f"axial_xy/fold0.{suffix}")
    assert train(pristine, run, "--stages", "localise", "--folds", "0,1") == 1
    assert "axial_xy/fold0.safetensors: fold 1's fit has seen study" in capsys.readouterr().err
    shutil.copy(run / "axial_xy/full.safetensors", run / "axial_xy/fold0.safetensors")
    assert train(pristine, run, "--stages", "localise", "--folds", "0,1") == 1
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


def tiny_command(data: Path, out: Path) -> list[str]:
    command = [str(PROJECT / "tests/support/train_tiny.py"), "train", "--data", str(data), "--recipe", "tiny"]
    return [*command, "--out", str(out), "--workers", "0", "--device", "cpu"]


def environment() -> dict[str, str]:
    path = f"{PROJECT / 'kernel'}:{PROJECT / 'src'}:{PROJECT / 'tests' / 'support'}"
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def run_ranks(world: int, data: Path, out: Path, *more: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    command += [*tiny_command(data, out), *more]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=1500)


@pytest.mark.slow
def test_two_processes_leave_what_one_leaves(finished, pristine, tmp_path):
    done = run_ranks(2, pristine, tmp_path / "many", "--jobs", "2")
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
def test_a_refusal_of_the_first_process_ends_both_machines_with_one_line_each(pristine, tmp_path):
    """Two machines of one process each, as the README starts them."""
    said = [tmp_path / f"machine{rank}.txt" for rank in (0, 1)]
    with two_machines(said, pristine, tmp_path / "run", "--folds", "7") as machines:
        for machine in machines:
            machine.wait(timeout=1500)
    for machine, errors in zip(machines, (path.read_text() for path in said), strict=True):
        assert machine.returncode != 0
        lines = [line for line in errors.splitlines() if line.startswith("lumbar_train: --folds: found '7'")]
        assert len(lines) == 1, errors[-3000:]
        assert "lumbar_train/__main__.py" not in errors  # no traceback of ours


@contextmanager
def two_machines(said: list[Path], data: Path, out: Path, *more: str) -> Iterator[list[subprocess.Popen]]:
    """``torchrun`` twice, each with its errors in a file; both are ended however the test ends."""
    with free_port() as port, ExitStack() as stack:
        machines = []
        for rank, path in enumerate(said):
            group = ["--nnodes=2", f"--node-rank={rank}", "--nproc-per-node=1"]
            group += ["--master-addr=127.0.0.1", f"--master-port={port}"]
            command = [sys.executable, "-m", "torch.distributed.run", *group, *tiny_command(data, out), *more]
            errors = stack.enter_context(path.open("w"))
            machine = subprocess.Popen(command, env=environment(), stderr=errors, stdout=subprocess.DEVNULL)
            stack.enter_context(machine)  # waits for it
            stack.callback(machine.terminate)  # which it passes on to its process
            machines.append(machine)
        yield machines


@contextmanager
def free_port() -> Iterator[int]:
    """A port that nothing else is given while it is held here, where a listener may still take it."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("", 0))
        yield holder.getsockname()[1]


def test_further_seeds_are_further_fits_on_all_data():
    assert with_seeds([0, 1, FULL], 3) == [0, 1, -1, -2, -3]
    assert with_seeds([0, 1], 3) == [0, 1]
    assert RECIPES["strong"]().full_seeds > 1 == RECIPES["demo"]().full_seeds


@pytest.mark.slow
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
    assert main(["train", "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--full-epochs", word]) != 0
    said = capsys.readouterr().err.strip()
    assert f"found {word!r}, expected STAGE=N" in said
    assert "\n" not in said
    assert not (tmp_path / "run").exists()


def test_a_run_with_all_that_strong_adds_goes_from_end_to_end(pristine, tmp_path, monkeypatch):
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
    assert train(pristine, run) == 0
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
    networks = load_networks(run / "export", read_manifest(run / "export"))
    check_probes(networks, read_manifest(run / "export"))
    assert len(networks.stage("sagittal_xy")) == 2


@pytest.mark.slow
def test_a_local_checkpoint_is_where_a_fit_starts(finished, pristine, tmp_path):
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
        file = ("--backbone-weights", str(tmp_path / "small.safetensors"))
        assert train(pristine, run, "--stages", "sagittal_z", "--folds", "0,1", *file) == 0
    weights = load_file(run / "sagittal_z/fold0.safetensors")
    name = "layer4.0.conv1.weight"
    assert torch.allclose(weights[f"backbone.network.{name}"], state[name], atol=1e-6)
    first = weights["backbone.network.conv1.0.weight"]
    assert torch.allclose(first, state["conv1.0.weight"].sum(1, keepdim=True), atol=1e-6)
