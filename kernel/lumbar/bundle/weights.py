"""Networks from a bundle: rebuilt from their configs, loaded strictly from safetensors."""

from __future__ import annotations

import logging
import mmap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lumbar.bundle.external_members import load_members
from lumbar.bundle.manifest import Manifest, WeightEntry
from lumbar.bundle.own_localisers import LOCALISERS, OwnSet, own_sets
from lumbar.bundle.safetensors_file import readable
from lumbar.bundle.shared_memory import SharedWeights
from lumbar.bundle.turns import loading_plan
from lumbar.config import CLASSIFIERS, FUSION, STAGES
from lumbar.errors import ManifestError
from lumbar.io.files import write_atomically
from lumbar.models import build, build_empty, expected_shapes
from lumbar.models.backbone import check_sizes
from lumbar.models.inference import Networks
from lumbar.models.turns import Turn
from lumbar.rules import shown
from lumbar.stages.classifiers import spared
from lumbar.stages.heat import SAGITTAL_POINTS

log = logging.getLogger("lumbar")

_ALIGNMENT = 64  # bytes: a tensor's start in shared memory, as torch's own begin
_WHOLE_NUMBERS = {
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_shared: SharedWeights | None = None  # of this worker

_POINTS = {"sagittal_xy": SAGITTAL_POINTS, "axial_xy": 2}  # number of points of a heatmap network, by stage


def use_shared(memory: SharedWeights | None) -> None:
    """Let all networks that this process loads on the CPU from now on have their weights in shared memory."""
    global _shared
    _shared = memory


def load_networks(folder: Path, manifest: Manifest, device: str | torch.device = "cpu") -> Networks:
    """Rebuild every network that the manifest lists, and load its weights.

    Raises:
        ManifestError: an unknown model or key, tensors that do not fit, or a stage of the chain without weights.
    """
    listed = manifest.classifiers
    names = tuple(one.name for one in listed) if "classifiers" in manifest.data else CLASSIFIERS
    external = {one.name for one in listed if one.external is not None}
    fusion = (FUSION,) if FUSION in manifest.data else ()
    names += fusion
    stages = [stage for stage in STAGES if stage not in CLASSIFIERS] + [name for name in names if name not in external]
    networks = Networks(
        classifiers=names,
        spared=spared(listed, manifest.data.get("shed", ())) | {*fusion},
        numbering=tuple(manifest.data.get("numbering", ())),
        point_probability=dict(manifest.data.get("point_probability", {})),
        grade_calibration=dict(manifest.data.get("grade_calibration", {})),
    )
    in_turn, turn = _in_turn(manifest, device), Turn(device)
    for entry in manifest.weights:
        if entry.stage in stages:
            _require_usable(entry, names)
            network = load_network(manifest.path(entry), entry, device)
            networks.by_stage.setdefault(entry.stage, []).append(network)
            if entry.file in in_turn:
                turn.add(network, partial(_weights_of, manifest.path(entry), entry))
    networks.own = tuple((own.members, _own_localisers(manifest, own, device)) for own in own_sets(manifest.data))
    missing = [stage for stage in stages if stage not in networks.by_stage]
    if missing:
        raise ManifestError(f"{folder}: no weights of stages {missing}, expected all of {stages}")
    networks.external.update(load_members(manifest, str(device)))
    return networks


def _own_localisers(manifest: Manifest, own: OwnSet, device: str | torch.device) -> Networks:
    """The networks of a further set of localisers, each under its usual stage."""
    networks = Networks(numbering=own.numbering)
    for localiser in LOCALISERS:
        for entry in manifest.of_stage(own.stage(localiser)):
            _require_usable(replace(entry, stage=localiser), ())
            networks.by_stage.setdefault(localiser, []).append(load_network(manifest.path(entry), entry, device))
    return networks


def _in_turn(manifest: Manifest, device: str | torch.device) -> frozenset[str]:
    """The files of networks that take turns, since not all fit; the plan of an ensemble is told in any case."""
    if _shared is not None and torch.device(device).type == "cpu":
        return frozenset()  # the run has found room for all of them, once for all workers
    plan = loading_plan(manifest, str(device))
    if plan.in_turn:
        log.warning("%s: %s", device, plan.words)
    elif "classifiers" in manifest.data:
        log.info("%s: %s", device, plan.words)
    return frozenset(entry.file for entry in plan.in_turn)


def _weights_of(path: Path, entry: WeightEntry) -> dict[str, Tensor]:
    """A network's weights anew from its file, as ``load_network`` gave them."""
    what = f"model {entry.model!r} and its config"
    return _as_float(_read_tensors(path, expected_shapes(entry.model, entry.config), what))


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
    tensors = None
    expected = expected_shapes(entry.model, entry.config)
    if _shared is not None and torch.device(device).type == "cpu":
        tensors = _shared_tensors(_shared, path, entry.file, expected, what)
    if tensors is None:
        tensors = _as_float(_read_tensors(path, expected, what))
    network = build_empty(entry.model, entry.config)
    if network is None:
        return _filled(build(entry.model, entry.config), tensors, path, what).to(device).eval()
    network = _filled(network, tensors, path, what).to(device).eval()
    check_sizes(network)
    return network


def load_into(network: nn.Module, path: Path, device: str | torch.device = "cpu") -> nn.Module:
    """A network that no config builds, with the tensors of its safetensors file, in float32 and evaluation mode.

    Raises:
        ManifestError: the file is not safetensors or its tensors do not fit the network.
    """
    what = type(network).__name__
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    return _filled(network, _as_float(_read_tensors(path, expected, what)), path, what).to(device).eval()


def _as_float(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in float32, whole numbers as they are: a file that changes later then changes no network."""
    return {
        name: tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
        for name, tensor in tensors.items()
    }


def _shared_tensors(
    shared: SharedWeights, path: Path, file: str, expected: Mapping[str, Sequence[int]] | None, what: str
) -> dict[str, Tensor] | None:
    """The tensors of a file in shared memory, put there by the first worker; None where they do not go in.

    Raises:
        ManifestError: as ``load_network``.
    """
    forms = _forms(path, expected, what)
    starts, end = {}, 0
    for name, (shape, dtype) in forms.items():
        if dtype is None:
            return None
        starts[name] = end
        end += -(-torch.Size(shape).numel() * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
    with shared.place(file, end) as place:
        if place is None:
            return None
        memory, is_there = place
        if not is_there:
            for name, tensor in _as_float(_read_tensors(path, expected, what)).items():
                memory.seek(starts[name])
                memory.write(tensor.contiguous().numpy().data)
    pages = shared.mapped(file)
    return {name: _mapped(pages, starts[name], shape, dtype) for name, (shape, dtype) in forms.items() if dtype}


def _mapped(pages: mmap.mmap, start: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    n_values = torch.Size(shape).numel()
    if n_values == 0:
        return torch.empty(tuple(shape), dtype=dtype)
    with warnings.catch_warnings():  # torch has no tensors that cannot be written; no network writes to its weights
        warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)
        return torch.frombuffer(pages, dtype=dtype, count=n_values, offset=start).view(tuple(shape))


def _filled(network: nn.Module, tensors: Mapping[str, Tensor], path: Path, what: str) -> nn.Module:
    own = network.state_dict()
    fitting = {name: tensor.to(own[name].dtype) if name in own else tensor for name, tensor in tensors.items()}
    try:
        network.load_state_dict(fitting, strict=True, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ManifestError(f"{path}: tensors do not fit {what} ({reason})") from None
    return network


def _forms(
    path: Path, expected: Mapping[str, Sequence[int]] | None, what: str
) -> dict[str, tuple[tuple[int, ...], torch.dtype | None]]:
    """Shape of each tensor of a file, and its type in memory (None: unknown), read from the file's header alone.

    A configuration is text and may ask for more memory than the machine has. A safetensors file really holds the bytes
    that its header declares, so a network with the shapes of its tensors is no larger than the file.

    Raises:
        ManifestError: no safetensors file, or shapes that differ from those that ``what`` asks for.
    """
    with readable(path), safe_open(path, framework="pt") as file:
        forms = {}
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            kind = part.get_dtype()
            forms[name] = tuple(part.get_shape()), torch.float32 if "F" in kind else _WHOLE_NUMBERS.get(kind)
    shapes = {name: shape for name, (shape, _) in forms.items()}
    if expected is not None and (reason := _difference(shapes, expected)):
        raise ManifestError(f"{path}: tensors do not fit {what} ({reason})")
    return forms


def _read_tensors(path: Path, expected: Mapping[str, Sequence[int]] | None, what: str) -> dict[str, Tensor]:
    """Read a file's tensors, once their shapes have been compared (``_forms``)."""
    _forms(path, expected, what)
    with readable(path):
        return load_file(path)


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
