"""Exports a baseline run's full fits in the form that is sealed: half precision, one file per column."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch

import lumbar
from lumbar.bundle.manifest import FILE_NAME, SCHEMA, WeightEntry, file_sha256, write_manifest
from lumbar.bundle.probes import record_probe
from lumbar.bundle.weights import load_network, save_network
from lumbar.chains.baseline import STAGE
from lumbar.config import BaselineConfig, from_dict, to_dict
from lumbar.labels import COLUMNS, CONDITIONS, LEVELS
from lumbar.models.baseline import BaselineNet
from lumbar_train.data.folds import FULL
from lumbar_train.data.tables import Cohort
from lumbar_train.engine.checkpoint import load_weights
from lumbar_train.errors import TrainingError

RECIPE = "baseline"


def export(
    out: Path,
    results: Mapping[tuple[str, int], Mapping[str, Any]],
    cohort: Cohort,
    oof: Mapping[str, float],
    training: Mapping[str, Any],
    temperatures: Mapping[str, Mapping[str, float]],
) -> Path:
    """Write ``RUN/export``: weights and manifest.

    A column that could not be fitted is listed in the manifest, and its prior is answered.

    Args:
        out: run folder.
        results: content of each ``fit.json``, by column and fold.
        cohort: that the run was fitted on.
        oof: out-of-fold score by term of the metric.
        training: noted in the manifest: seconds, machine, threads.
        temperatures: by condition; ``all`` goes into the configuration of its networks.

    Raises:
        TrainingError: no column has a fit on all data.
    """
    folder = out / "export"
    full = {column: result for (column, fold), result in results.items() if fold == FULL}
    fitted = [column for column in COLUMNS if full.get(column, {}).get("status") == "fitted"]
    if not fitted:
        raise TrainingError(f"{out}: no column has a fit on all data, expected one or more to export")
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    entries = [_entry(out, folder, column, full[column], _temperature(column, temperatures)) for column in fitted]
    for stale in set((folder / "weights").glob("*.safetensors")) - {folder / str(e["file"]) for e in entries}:
        stale.unlink()
    prior = cohort.prior()
    data = {
        "schema": SCHEMA,
        "dataset": {"id": "your-kaggle-name/lumbar-kit", "version": None},  # replaced when the bundle is sealed
        "code_sha256": "",  # not sealed: sealing writes the hash of the code that it puts beside the weights
        "recipe": RECIPE,
        "created_by": f"lumbar {lumbar.__version__}",
        "cohort": {
            "fingerprint": cohort.fingerprint,
            "studies": len(cohort),
            "description": "synthetic" if cohort.is_synthetic else "competition",
        },
        "prior": {column: _row(prior[k]) for k, column in enumerate(COLUMNS)},
        "oof": dict(oof),
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__,
            "numpy": np.__version__, "pandas": pd.__version__,
        },
        "training": dict(training) | {"columns_at_their_prior": [c for c in COLUMNS if c not in fitted]},
        "forced": [],
        "weights": entries,
    }  # fmt: skip
    write_manifest(folder / FILE_NAME, data)
    return folder


def _temperature(column: str, temperatures: Mapping[str, Mapping[str, float]]) -> float:
    """Temperature of a column's condition; 1 if no fold could be fitted and measured."""
    condition = CONDITIONS[COLUMNS.index(column) // len(LEVELS)]
    return float(temperatures.get(condition, {}).get("all", 1.0))


def _entry(out: Path, folder: Path, column: str, result: Mapping[str, Any], temperature: float) -> dict[str, Any]:
    """Save a column's weights in the bundle; returns its entry in the manifest."""
    config = replace(from_dict(BaselineConfig, result["network"]), temperature=temperature)
    network = BaselineNet(config)
    load_weights(out / "fits" / column / "full" / "weights.safetensors", network)
    file = folder / "weights" / f"{column}.full.safetensors"
    save_network(network, file, half=True)
    entry = WeightEntry(
        file=f"weights/{file.name}",
        sha256=file_sha256(file),
        bytes=file.stat().st_size,
        stage=STAGE,
        model="baseline",
        config=to_dict(config),
        fold=FULL,
        metrics={"parameters": sum(p.numel() for p in network.parameters())},
        probe={},
    )
    # The probe is recorded with the file as the kernel will load it, rounded to half precision
    probe = record_probe(load_network(file, entry))
    names = ("file", "sha256", "bytes", "stage", "model", "config", "fold", "metrics")
    return {name: getattr(replace(entry, probe=probe), name) for name in (*names, "probe")}


def _row(values: np.ndarray) -> list[float]:
    """Three probabilities with 8 decimals that sum to exactly 1."""
    rounded = [round(float(value), 8) for value in values[:2]]
    return [*rounded, round(1.0 - sum(rounded), 8)]
