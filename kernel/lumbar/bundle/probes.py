"""Probes: a network's output for a seeded input, recorded at sealing and compared before use.

A probe shows whether code, library versions and weights still belong together. Each network gives the form of its input
(``example_inputs``); the pixels go through the same normalisation and sampling as real ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lumbar.bundle.manifest import Manifest
from lumbar.bundle.own_localisers import LOCALISERS, own_sets
from lumbar.bundle.probe_rule import PROBE_TOLERANCE, PROBE_VALUES, differing
from lumbar.dicom import Stack
from lumbar.errors import ManifestError
from lumbar.geometry import make_grid
from lumbar.labels import SAGITTAL_T2
from lumbar.models.inference import Networks, forward
from lumbar.rules import shown
from lumbar.stages.crop import grid_images, with_context
from lumbar.stages.eight_bit import as_input, probe_slices
from lumbar.study import Study


@dataclass(frozen=True)
class SeededExamples:
    """The source of a probe's inputs (``lumbar.models.examples.Examples``)."""

    seed: int

    def images(self, n: int, size: int) -> Tensor:
        """Images (n, size, size) in 0..1, sampled from a made-up study in the way of real crops."""
        return torch.from_numpy(probe_images(self.seed, n, size).copy())

    def with_neighbours(self, n: int, size: int, context: int) -> Tensor:
        """The same images, each with its neighbours as channels: (n, context, size, size)."""
        return torch.from_numpy(with_context(probe_images(self.seed, n, size), context))

    def whole_slices(self, size: int) -> Tensor:
        """Whole 8-bit slices as input of the baseline's networks: (2, 1, size, size)."""
        return as_input(probe_slices(self.seed, size))


@lru_cache(maxsize=16)  # folds and classifiers ask for the same ones, each twice
def probe_images(seed: int, n: int, size: int) -> NDArray[np.float32]:
    """Seeded images (n, size, size) float32 in 0..1, normalised and sampled in the way of real ones; read-only."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((n, 12, 14)) * 900.0 + 40.0
    volume = coarse.repeat(4, axis=1).repeat(4, axis=2).astype(np.float32)
    stack = Stack(
        series_id="probe",
        volume=volume,
        origins_mm=np.array([[4.0 * i, -60.0, 60.0] for i in range(n)]),
        row_mm=np.array([0.0, 0.0, -2.5]),
        column_mm=np.array([0.0, 2.4, 0.0]),
        instance_numbers=list(range(1, n + 1)),
        is_inverted=False,
        problems=[],
    )
    study = Study(study_id=0, series={SAGITTAL_T2: [stack]})
    grid = make_grid(stack, size=size, mm_per_px=130.0 / size, angle_deg=7.0)
    images = grid_images(study, stack, grid)
    images.setflags(write=False)
    return images


def probe_inputs(network: nn.Module, seed: int) -> tuple[Tensor, ...]:
    """The seeded input of a network's probe."""
    inputs: tuple[Tensor, ...] = network.example_inputs(SeededExamples(seed))  # type: ignore[operator]
    return inputs


def run_probe(network: nn.Module, seed: int) -> list[float]:
    """Evenly spaced values of a network's output for its seeded input."""
    out = forward(network, *probe_inputs(network, seed)).flatten()
    step = max(1, out.numel() // PROBE_VALUES)
    return [round(float(value), 5) for value in out[::step][:PROBE_VALUES]]


def record_probe(network: nn.Module, seed: int = 0) -> dict[str, Any]:
    """The probe entry of a manifest for a network as it will be loaded."""
    shapes = _input_shapes(probe_inputs(network, seed))
    return {"seed": seed, "inputs": shapes, "expected": run_probe(network, seed), "tolerance": PROBE_TOLERANCE}


def _input_shapes(inputs: Sequence[Tensor]) -> dict[str, list[int]]:
    return {f"input{i}": list(tensor.shape) for i, tensor in enumerate(inputs)}


def check_probe(network: nn.Module, probe: Mapping[str, Any], name: str) -> None:
    """Compare a network's output with the one that the manifest gives.

    Args:
        network: as loaded.
        probe: the manifest's entry.
        name: the file of its weights, for the message.

    Raises:
        ManifestError: the outputs differ: code, library versions and weights do not belong together.
    """
    if not {"seed", "expected", "tolerance"} <= probe.keys():
        raise ManifestError(f"{name}: found probe {shown(dict(probe))}, expected seed, expected, tolerance")
    seed, expected, tolerance = probe["seed"], probe["expected"], probe["tolerance"]
    if "inputs" in probe and (shapes := _input_shapes(probe_inputs(network, seed))) != probe["inputs"]:
        raise ManifestError(f"{name}: found probe inputs {shown(probe['inputs'])}, expected {shapes}")
    values = run_probe(network, seed)
    if difference := differing(values, expected, tolerance):
        raise ManifestError(
            f"{name}: probe gave {difference}: code or library versions differ from those that the weights were sealed "
            "with"
        )


def check_probes(networks: Networks, manifest: Manifest) -> None:
    """Check every loaded network's probe.

    Raises:
        ManifestError: as ``check_probe``, for the first that differs.
    """
    loaded = dict(networks.by_stage)
    for own, (_, localisers) in zip(own_sets(manifest.data), networks.own, strict=True):
        loaded |= {own.stage(localiser): localisers.stage(localiser) for localiser in LOCALISERS}
    for stage, group in itertools.groupby(sorted(manifest.weights, key=lambda e: e.stage), key=lambda e: e.stage):
        if stage in loaded:
            for network, entry in zip(loaded[stage], group, strict=True):
                check_probe(network, entry.probe, entry.file)
