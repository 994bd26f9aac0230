"""Networks from a bundle: rebuilt from their configs, loaded strictly from safetensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lumbar.bundle.manifest import Manifest, WeightEntry
from lumbar.config import CLASSIFIERS, STAGES
from lumbar.errors import ManifestError
from lumbar.io.files import write_atomically
from lumbar.models import build, expected_shapes
from lumbar.models.inference import Networks
from lumbar.rules import shown
from lumbar.stages.classifiers import spared
from lumbar.stages.heat import SAGITTAL_POINTS

_POINTS = {"sagittal_xy": SAGITTAL_POINTS, "axial_xy": 2}  # number of points of a heatmap network, by stage


def load_networks(folder: Path, manifest: Manifest, device: str | torch.device = "cpu") -> Networks:
    """Rebuild every network that the manifest lists, and load its weights.

    Raises:
        ManifestError: an unknown model or key, tensors that do not fit, or a stage of the chain without weights.
    """
    listed = manifest.classifiers
    names = tuple(one.name for one in listed) if "classifiers" in manifest.data else CLASSIFIERS
    stages = [stage for stage in STAGES if stage not in CLASSIFIERS] + list(names)
    networks = Networks(classifiers=names, spared=spared(listed, manifest.data.get("shed", ())))
    for entry in manifest.weights:
        if entry.stage in stages:
            _require_usable(entry, names)
            networks.by_stage.setdefault(entry.stage, []).append(load_network(manifest.path(entry), entry, device))
    missing = [stage for stage in stages if stage not in networks.by_stage]
    if missing:
        raise ManifestError(f"{folder}: no weights of stages {missing}, expected all of {stages}")
    return networks


def _require_usable(entry: WeightEntry, classifiers: Sequence[str]) -> None:
    """Refuse a network whose output the chain cannot use: else every study would fail instead of this one check."""
    points = entry.config.get("points")
    if entry.model == "heatmap" and points != _POINTS.get(entry.stage, points):
        raise ManifestError(f"{entry.file}: found {points} points, expected {_POINTS[entry.stage]} for {entry.stage}")
    names = entry.config.get("models", list(CLASSIFIERS))
    if entry.stage == "aggregator" and list(names) != list(classifiers):
        raise ManifestError(f"{entry.file}: found models {shown(names)}, expected {list(classifiers)}")


def load_network(path: Path, entry: WeightEntry, device: str | torch.device = "cpu") -> nn.Module:
    """Load one network from its safetensors file, of any float precision, as float32 and in evaluation mode.

    Raises:
        ManifestError: the file is not safetensors or its tensors do not fit the config.
    """
    what = f"model {entry.model!r} and its config"
    tensors = _read_tensors(path, expected_shapes(entry.model, entry.config), what)
    return _filled(build(entry.model, entry.config), tensors, path, what).to(device).eval()


def load_into(network: nn.Module, path: Path, device: str | torch.device = "cpu") -> nn.Module:
    """A network that no config builds, with the tensors of its safetensors file, in float32 and evaluation mode.

    Raises:
        ManifestError: the file is not safetensors or its tensors do not fit the network.
    """
    what = type(network).__name__
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    return _filled(network, _read_tensors(path, expected, what), path, what).to(device).eval()


def _filled(network: nn.Module, tensors: Mapping[str, Tensor], path: Path, what: str) -> nn.Module:
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ManifestError(f"{path}: tensors do not fit {what} ({reason})") from None
    return network


def _read_tensors(path: Path, expected: Mapping[str, Sequence[int]] | None, what: str) -> dict[str, Tensor]:
    """Read a file's tensors after their shapes were compared with those that ``what`` asks for.

    A configuration is text and may ask for more memory than the machine has. A safetensors file really holds the bytes
    that its header declares, so a network with the shapes of its tensors is no larger than the file.

    Raises:
        ManifestError: no safetensors file, or shapes that differ.
    """
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if expected is not None and (reason := _difference(shapes, expected)):
            raise ManifestError(f"{path}: tensors do not fit {what} ({reason})")
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, MemoryError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ManifestError(f"{path}: not readable as safetensors ({reason})") from None


def _difference(shapes: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]]) -> str:
    """A sentence about the first tensor that is missing, has another shape or is extra; empty where all agree."""
    for name, shape in expected.items():
        if name not in shapes:
            return f"{name} is missing, expected shape {list(shape)}"
        if tuple(shapes[name]) != tuple(shape):
            return f"{name}: found shape {list(shapes[name])}, expected {list(shape)}"
    extra = sorted(shapes.keys() - expected.keys())
    return f"found {shown(extra[0])}, which the network does not have" if extra else ""


def save_network(network: nn.Module, path: Path, *, half: bool = True) -> None:
    """Write a network's state as safetensors, floats in half precision with ``half``; equal weights give equal bytes.

    Raises:
        ManifestError: the file cannot be written; what stood at ``path`` still stands.
    """
    state = {}
    for name, tensor in sorted(network.state_dict().items()):
        keep = tensor.detach().cpu().contiguous()
        state[name] = keep.half() if half and keep.is_floating_point() else keep
    write_atomically(path, save(state), ManifestError)
