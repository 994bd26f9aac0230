"""What sealing takes of a training that is not ours: networks of another competition, as a run's ``export`` folder."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lumbar
from lumbar.bundle.code_hash import own_code_sha256
from lumbar.bundle.manifest import FILE_NAME, SCHEMA, file_sha256, write_manifest
from lumbar.errors import ManifestError
from lumbar.output.versions import versions
from lumbar_publish.names import DEFAULT_SLUG, PLACEHOLDER_OWNER

if TYPE_CHECKING:
    from torch import nn


def export_networks(
    run: Path,
    competition: str,
    networks: Mapping[str, Sequence[nn.Module]],
    prior: Mapping[str, Sequence[float]],
    *,
    study_ids: Sequence[int],
    recipe: str = "own",
    oof: Mapping[str, float] | None = None,
) -> Path:
    """Write ``RUN/export``: each network as safetensors in half precision, its probe, and the manifest.

    Args:
        run: folder to write into.
        competition: module of ``lumbar/competitions``.
        networks: stage → its fits, the one to keep when time is short first. Each gives ``example_inputs`` as
            docs/add-a-stage.md describes them.
        prior: row of the competition (``Competition.keys``) → its values: the answer for a study that fails.
        study_ids: what the networks were fitted on.
        recipe: a name for how.
        oof: out-of-fold scores, for the record.

    Returns:
        The folder.

    Raises:
        ManifestError: a network without example inputs, or what makes no valid manifest; no manifest is written then.
        CohortError: a file cannot be written.
    """
    folder = run / "export"
    entries = [
        _entry(folder, stage, network, index if len(fits) > 1 else -1)
        for stage, fits in networks.items()
        for index, network in enumerate(fits)
    ]
    listed = "\n".join(map(str, sorted(study_ids)))
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "competition": competition,
        "dataset": {"id": f"{PLACEHOLDER_OWNER}/{DEFAULT_SLUG}", "version": None},  # sealing puts the true one here
        "code_sha256": own_code_sha256(),
        "recipe": recipe,
        "created_by": f"lumbar {lumbar.__version__}",
        "cohort": {
            "fingerprint": hashlib.sha256(listed.encode()).hexdigest(),
            "studies": len(study_ids),
            "description": competition,
        },
        "prior": {key: [float(value) for value in row] for key, row in prior.items()},
        "oof": dict(oof or {}),
        "versions": versions(),
        "training": {},
        "forced": [],
        "weights": entries,
    }
    write_manifest(folder / FILE_NAME, data)
    return folder


def _entry(folder: Path, stage: str, network: nn.Module, fold: int) -> dict[str, Any]:
    from lumbar.bundle.probes import record_probe  # here: this imports torch, which the other steps do without
    from lumbar.bundle.weights import load_into, save_network

    name = type(network).__name__
    if not callable(getattr(network, "example_inputs", None)):
        raise ManifestError(f"{stage}: found {name} without example_inputs, expected a network that gives its probe's")
    file = folder / "weights" / f"{stage}.{'full' if fold < 0 else f'fold{fold}'}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_network(network, file)
    return {
        "file": f"weights/{file.name}",
        "sha256": file_sha256(file),
        "bytes": file.stat().st_size,
        "stage": stage,
        "model": name,
        "config": {},
        "fold": fold,
        "metrics": {"parameters": sum(p.numel() for p in network.parameters())},
        # of the network as the kernel will load it, rounding to half precision included
        "probe": record_probe(load_into(copy.deepcopy(network), file)),
    }
