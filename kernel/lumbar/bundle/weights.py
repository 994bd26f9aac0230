"""Networks from a bundle: rebuilt from their configs, loaded strictly from safetensors, proven by their probes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lumbar.bundle.manifest import Manifest, WeightEntry
from lumbar.config import STAGES
from lumbar.dicom import Stack
from lumbar.errors import ManifestError
from lumbar.geometry import make_grid
from lumbar.io.files import write_atomically
from lumbar.labels import SAGITTAL_T2
from lumbar.models import build, expected_shapes
from lumbar.models.aggregator import Aggregator
from lumbar.models.backbone import is_fixed_size
from lumbar.models.baseline import BaselineNet
from lumbar.models.classifier import AxialClassifier, SagittalClassifier
from lumbar.models.heatmap import HeatmapNet
from lumbar.models.inference import Networks, forward
from lumbar.models.regression import AxialRegressionNet, SagittalRegressionNet
from lumbar.models.sequence import SliceRoleNet
from lumbar.rules import shown
from lumbar.stages.classify import CLASSIFIERS
from lumbar.stages.crop import grid_images, with_context
from lumbar.stages.eight_bit import as_input, probe_slices
from lumbar.stages.heat import SAGITTAL_POINTS
from lumbar.study import Study

_POINTS = {"sagittal_xy": SAGITTAL_POINTS, "axial_xy": 2}  # of a heatmap network, by stage
PROBE_VALUES = 24  # outputs kept of each probe
PROBE_TOLERANCE = 0.02  # of 1 + |expected|: covers half precision on a GPU, not a changed layer


def load_networks(folder: Path, manifest: Manifest, device: str | torch.device = "cpu") -> Networks:
    """Rebuild every network that the manifest lists and load its weights, strictly.

    Raises:
        ManifestError: an unknown model or key, tensors that do not fit, or a stage of the chain without weights.
    """
    networks = Networks()
    for entry in manifest.weights:
        if entry.stage in STAGES:
            _demand_use(entry)
            networks.by_stage.setdefault(entry.stage, []).append(load_network(manifest.path(entry), entry, device))
    missing = [stage for stage in STAGES if stage not in networks.by_stage]
    if missing:
        raise ManifestError(f"{folder}: no weights of stages {missing}, expected all of {list(STAGES)}")
    return networks


def _demand_use(entry: WeightEntry) -> None:
    """Refuse a network whose answers the chain could not use: it would fail in every study instead of once, here."""
    points = entry.config.get("points")
    if entry.model == "heatmap" and points != _POINTS.get(entry.stage, points):
        raise ManifestError(f"{entry.file}: found {points} points, expected {_POINTS[entry.stage]} for {entry.stage}")
    names = entry.config.get("models", list(CLASSIFIERS))
    if entry.stage == "aggregator" and list(names) != list(CLASSIFIERS):
        raise ManifestError(f"{entry.file}: found models {shown(names)}, expected {list(CLASSIFIERS)}")


def load_network(path: Path, entry: WeightEntry, device: str | torch.device = "cpu") -> nn.Module:
    """One network in float32 and evaluation mode from its safetensors file (stored in any float precision).

    Raises:
        ManifestError: the file is not safetensors or its tensors do not fit the config.
    """
    tensors = _read_tensors(path, entry)
    network = build(entry.model, entry.config)
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ManifestError(f"{path}: tensors do not fit model {entry.model!r} and its config ({reason})") from None
    return network.to(device).eval()


def _read_tensors(path: Path, entry: WeightEntry) -> dict[str, Tensor]:
    """The file's tensors, once their shapes are those that the config asks for.

    A config is text: it may ask for more memory than the machine has. A file holds the bytes that its header declares,
    so that shapes which agree bound what the network takes, before anything is allocated.

    Raises:
        ManifestError: no safetensors file, or shapes that differ.
    """
    expected = expected_shapes(entry.model, entry.config)
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if expected is not None and (reason := _difference(found, expected)):
            raise ManifestError(f"{path}: tensors do not fit model {entry.model!r} and its config ({reason})")
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, MemoryError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ManifestError(f"{path}: not readable as safetensors ({reason})") from None


def _difference(found: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]]) -> str:
    """The first tensor that is missing, of another shape, or too many; empty where there is none."""
    for name, shape in expected.items():
        if name not in found:
            return f"{name} is missing, expected shape {list(shape)}"
        if tuple(found[name]) != tuple(shape):
            return f"{name}: found shape {list(found[name])}, expected {list(shape)}"
    extra = sorted(found.keys() - expected.keys())
    return f"found {shown(extra[0])}, which the network does not have" if extra else ""


def save_network(network: nn.Module, path: Path, *, half: bool = True) -> None:
    """Write a network's state as safetensors, floats in half precision if ``half``; same weights, same bytes.

    Raises:
        ManifestError: the file cannot be written; what stood at ``path`` still stands.
    """
    state = {}
    for name, tensor in sorted(network.state_dict().items()):
        keep = tensor.detach().cpu().contiguous()
        state[name] = keep.half() if half and keep.is_floating_point() else keep
    write_atomically(path, save(state), ManifestError)


def probe_images(seed: int, n: int, size: int) -> NDArray[np.float32]:
    """Seeded images (n, size, size) float32 in 0..1, through the normalisation and sampling that real ones get."""
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
    return grid_images(study, stack, grid)


def probe_size(network: Any) -> int:
    """Side in pixels of a probe's images: small, unless the backbone takes images of its stage's own size alone."""
    backbone = getattr(network.config, "backbone", "")
    name = backbone if isinstance(backbone, str) else backbone.name
    size = int(network.config.size)
    return size if name and is_fixed_size(name) else min(size, 128)


def probe_inputs(network: nn.Module, seed: int) -> tuple[Tensor, ...]:
    """The seeded input of a network's probe; masks leave some steps out, so that masking is probed too."""
    if isinstance(network, (HeatmapNet, SagittalRegressionNet)):
        images = with_context(probe_images(seed, 2, probe_size(network)), network.config.context)
        return (torch.from_numpy(images),)
    if isinstance(network, AxialRegressionNet):
        return (torch.from_numpy(probe_images(seed, 2, probe_size(network))[:, None]),)
    if isinstance(network, SliceRoleNet):
        size = probe_size(network)
        tensor = torch.from_numpy(probe_images(seed, 8, size)).view(2, 4, size, size)
        return tensor, torch.tensor([[True, True, True, True], [True, True, False, False]])
    if isinstance(network, SagittalClassifier):
        size, window = probe_size(network), network.config.window
        tensor = torch.from_numpy(probe_images(seed, 3 * window, size)).view(1, 3, window, size, size)
        mask = torch.ones(1, 3, window, dtype=torch.bool)
        mask[0, 1, -1] = False
        return tensor, mask, torch.tensor([3])
    if isinstance(network, AxialClassifier):
        size, window = probe_size(network), network.config.window
        tensor = torch.from_numpy(probe_images(seed, window, size))[None]
        mask = torch.ones(1, window, dtype=torch.bool)
        mask[0, 0] = False
        return tensor, mask, torch.tensor([2])
    if isinstance(network, BaselineNet):
        return (as_input(probe_slices(seed, probe_size(network))),)
    assert isinstance(network, Aggregator)
    rng = np.random.default_rng(seed)
    n_models = len(network.config.models)
    logits = torch.from_numpy(rng.random((1, n_models, 5, 5, 3), dtype=np.float32) * 4 - 2)
    mask = torch.from_numpy(rng.random((1, n_models, 5, 5)) > 0.3)
    log_prior = torch.from_numpy(np.log(rng.random((5, 5, 3), dtype=np.float32) + 0.1))
    if network.config.confidence:
        return logits, mask, log_prior, torch.from_numpy(rng.random((1, 5, 4), dtype=np.float32))
    return logits, mask, log_prior


def run_probe(network: nn.Module, seed: int) -> list[float]:
    """Evenly spaced values of a network's answer to its seeded input."""
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
    """Compare a network's answer with the manifest's.

    Raises:
        ManifestError: naming the file, the value found and the value expected: code, library versions and weights do
            not belong together.
    """
    if not {"seed", "expected", "tolerance"} <= probe.keys():
        raise ManifestError(f"{name}: found probe {shown(dict(probe))}, expected seed, expected, tolerance")
    seed, expected, tolerance = probe["seed"], probe["expected"], probe["tolerance"]
    if "inputs" in probe and (shapes := _input_shapes(probe_inputs(network, seed))) != probe["inputs"]:
        raise ManifestError(f"{name}: found probe inputs {shown(probe['inputs'])}, expected {shapes}")
    found = run_probe(network, seed)
    if len(found) != len(expected):
        raise ManifestError(f"{name}: probe gave {len(found)} values, expected {len(expected)}")
    for value, wanted in zip(found, expected, strict=True):
        if not abs(value - wanted) <= tolerance * (1 + abs(wanted)):
            raise ManifestError(
                f"{name}: probe gave {value:.4f}, expected {wanted:.4f}: code or library versions differ from those "
                f"that the weights were sealed with"
            )


def check_probes(networks: Networks, manifest: Manifest) -> None:
    """Check every loaded network's probe.

    Raises:
        ManifestError: as ``check_probe``, for the first that differs.
    """
    for stage, group in itertools.groupby(sorted(manifest.weights, key=lambda e: e.stage), key=lambda e: e.stage):
        if stage in networks.by_stage:
            for network, entry in zip(networks.by_stage[stage], group, strict=True):
                check_probe(network, entry.probe, entry.file)
