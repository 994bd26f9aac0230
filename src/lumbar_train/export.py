"""Exports the weights of a run as they are sealed: half-precision safetensors and a manifest."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pandas as pd
import timm
import torch
import torchvision

import lumbar
from lumbar.bundle.manifest import SCHEMA, WeightEntry, file_sha256, write_manifest
from lumbar.bundle.probes import record_probe
from lumbar.bundle.weights import load_network, save_network
from lumbar.config import FUSION, to_dict
from lumbar.labels import COLUMNS
from lumbar.models import build, name_of
from lumbar.stages.classifiers import Classifier
from lumbar_train.data.folds import fold_name, is_full
from lumbar_train.engine.checkpoint import load_weights
from lumbar_train.errors import TrainingError
from lumbar_train.files import make_folder, read_object
from lumbar_train.outputs.kept import FILE as RECIPE
from lumbar_train.stages.aggregate_folds import with_calibration
from lumbar_train.stages.context import RunContext
from lumbar_train.stages.fused_recipe import aggregator_of, head_config, is_kept, members_of
from lumbar_train.stages.fusion import read_decision
from lumbar_train.stages.localisers import LOCALISERS
from lumbar_train.stages.registry import STAGES

FILE = "weights_manifest.json"
MEASURED = ("numbering", "point_probability")  # what benchmarks measure of localisers, and put into an export


def export(run: RunContext) -> Path:
    """Write ``RUN/export/weights/*.safetensors`` and ``RUN/export/weights_manifest.json``; returns the folder.

    Raises:
        TrainingError: a stage lacks the fit that ships.
    """
    folder = run.folder.export
    folds = fits_that_ship(run)
    shipped = [stage.name for stage in STAGES if stage.is_exported and stage.is_part_of(run.recipe)]
    if not is_kept(run.out, run.recipe):
        shipped = [name for name in shipped if name != FUSION]
    fits = [(name, fold) for name in shipped for fold in folds]
    _check_fits(run, fits)
    entries = [_entry(run, folder, stage, fold) for stage, fold in fits]
    metrics = _read_json(run.out / "aggregator" / "metrics.json")
    data = manifest_head(run.recipe.name) | {
        "cohort": {
            "fingerprint": run.cohort.fingerprint,
            "studies": len(run.cohort),
            "description": "synthetic" if run.cohort.is_synthetic else "competition",
        },
        "prior": prior_rows(run.cohort.prior()),
        "oof": metrics.get("oof", {}),
        "training": _read_json(run.out / "seconds.json") | _settings(run),
        "weights": entries,
        "classifiers": [
            Classifier.of(name, run.recipe.stages[name].network).as_json()
            for name in run.recipe.stages["aggregator"].network.models
        ],
    }
    if run.recipe.fusion is not None:
        data["training"]["fusion"] = read_decision(run.out)
    if FUSION in shipped:
        data[FUSION] = {"members": list(members_of(run.recipe))}
    write_manifest(folder / FILE, with_calibration(data | measured_before(folder / FILE, entries), run.out))
    for path in set((folder / "weights").glob("*.safetensors")) - {folder / entry["file"] for entry in entries}:
        path.unlink()  # of a former export of other fits
    return folder


def measured_before(manifest: Path, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How sure levels and points are, as ``benchmarks`` have put it into a former export of the same localisers.

    Args:
        manifest: of the former export, if there is one.
        entries: of the weights that are exported now.
    """
    former = read_object(manifest)
    known = {name: former[name] for name in MEASURED if name in former}
    hashes = [
        {entry.get("file"): entry.get("sha256") for entry in some if entry.get("stage") in LOCALISERS}
        for some in (former.get("weights", ()), entries)
    ]
    if hashes[0] == hashes[1]:
        return known
    if known:
        print(f"{manifest}: {', '.join(known)} are left out: they are of other localisers; measure them anew")
    return {}


def fits_that_ship(run: RunContext) -> list[int]:
    """The fits that are exported: those on all data of this call, those on folds, or both, as the recipe says."""
    full = [fold for fold in run.use_folds if is_full(fold)]
    of_before = {name for name in run.folder.fits_of("aggregator") if name.startswith("fold")}
    folds = sorted({int(name.removeprefix("fold")) for name in of_before} | {*run.use_folds} - {*full})
    ships = {"full": full, "folds": folds, "all": [*full, *folds] if full else []}[run.recipe.export]
    # When time is short the kernel runs the first alone
    return sorted(ships, key=lambda fold: (not is_full(fold), abs(fold)))


def _settings(run: RunContext) -> dict[str, Any]:
    """What the recipe's name does not tell: changed fields, and the weights that the fits started from."""
    settings: dict[str, Any] = {"set": list(run.changes)} if run.changes else {}
    if noted := read_object(run.out / RECIPE).get("init"):
        settings["init"] = {"run": Path(noted["run"]).name, "digest": noted["digest"]}
    if noted := read_object(run.out / RECIPE).get("localisers"):
        settings["localisers"] = {"run": Path(noted["run"]).name, "seed": noted["seed"]}
    return settings


def _check_fits(run: RunContext, fits: list[tuple[str, int]]) -> None:
    """Refuse before anything is written, so that a former export stays whole."""
    for stage, fold in fits:
        source = run.folder.weights(stage, fold)
        if not source.is_file():
            raise TrainingError(
                f"{source}: not found, expected the fit of stage {stage} that ships; make it with --stages {stage} "
                "--resume"
            )


def _entry(run: RunContext, folder: Path, stage: str, fold: int) -> dict[str, Any]:
    config = run.recipe.stages[stage].network if stage in run.recipe.stages else head_config(run.recipe)
    if stage == "aggregator":
        config = aggregator_of(run.out, run.recipe).network
    return weight_entry(run.folder.weights(stage, fold), folder, stage, fold, config)


def weight_entry(source: Path, folder: Path, stage: str, fold: int, config: Any) -> dict[str, Any]:
    """Write one fit's weights as they ship, and give its entry of the manifest.

    Args:
        source: the weights that the fit has left.
        folder: the export.
        stage: under which the kernel finds it.
        fold: of the fit.
        config: of its network.
    """
    network = build(name_of(config), to_dict(config))
    load_weights(source, network)
    file = folder / "weights" / f"{stage}.{fold_name(fold)}.safetensors"
    make_folder(file.parent)
    save_network(network, file, half=True)
    values: dict[str, Any] = {
        "file": f"weights/{file.name}",
        "sha256": file_sha256(file),
        "bytes": file.stat().st_size,
        "stage": stage,
        "model": name_of(config),
        "config": to_dict(config),
        "fold": fold,
        "metrics": {"parameters": sum(p.numel() for p in network.parameters())},
        "probe": {},
    }
    # the probe is taken from the file as the kernel will load it, rounding to half precision included
    values["probe"] = record_probe(load_network(file, WeightEntry(**values)))
    return values


def manifest_head(recipe: str) -> dict[str, Any]:
    """The fields of a manifest that every export has alike; sealing fills in the dataset and the hash of the code."""
    return {
        "schema": SCHEMA,
        "dataset": {"id": "your-kaggle-name/lumbar-kit", "version": None},  # sealing puts the true one here
        "code_sha256": "",  # not sealed: sealing writes the hash of the code that it puts beside the weights
        "recipe": recipe,
        "created_by": f"lumbar {lumbar.__version__}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "timm": timm.__version__,
            "numpy": np.__version__,
            "pandas": pd.__version__,
            "numba": numba.__version__,
        },
        "forced": [],
    }


def prior_rows(prior: np.ndarray) -> dict[str, list[float]]:
    """The prior (25, 3) as a manifest holds it; each row sums to 1."""
    return {column: _row(prior[k]) for k, column in enumerate(COLUMNS)}


def _row(values: np.ndarray) -> list[float]:
    rounded = [round(float(value), 8) for value in values[:2]]
    return [*rounded, round(1.0 - sum(rounded), 8)]


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}
