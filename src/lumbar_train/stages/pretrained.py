"""Where backbones start: from random weights, from timm's pretrained ones, or from a local timm checkpoint.

This concerns training alone. At inference weights come from the sealed file, so no configuration of a network says
where they began.
"""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache
from safetensors import SafetensorError
from timm.models._helpers import load_state_dict
from torch import Tensor, nn

from lumbar.config import BackboneConfig
from lumbar.errors import ManifestError
from lumbar.models.backbone import Backbone, create_timm
from lumbar.models.heatmap import TimmEncoder
from lumbar_train.errors import TrainingError
from lumbar_train.recipes import Recipe, StageRecipe

_INSTEAD = "give --backbone-weights FILE, or --no-pretrained to start from random weights"
_PROBE_SECONDS = 5.0


@dataclass(frozen=True)
class Start:
    """What backbones start from: local checkpoints by timm name, else timm's weights if asked for, else chance."""

    is_pretrained: bool = False
    files: dict[str, Path] = field(default_factory=dict)

    def check(self, recipe: Recipe, entries: Collection[str] | None = None) -> None:
        """Build and fill every backbone of a recipe once, so that what is wrong shows before hours of other work.

        Args:
            recipe: of the run.
            entries: of the recipe, whose backbones are filled; None for all.

        Raises:
            TrainingError: in one line, why a backbone cannot have what is asked for.
        """
        known = backbones(recipe)
        if unused := sorted(set(self.files) - {config.name for config in known}):
            names = ", ".join(sorted({config.name for config in known}))
            raise TrainingError(f"--backbone-weights: recipe {recipe.name} has no backbone {unused[0]}, found {names}")
        for config in backbones(recipe, entries):
            if self.is_pretrained or config.name in self.files:
                self._filled(config, {"in_chans": 3, "num_classes": 0})

    def apply(self, network: nn.Module) -> None:
        """Fill the backbones of a network in place; the first convolution takes as many channels as it has.

        Raises:
            TrainingError: as ``check``.
        """
        for module in network.modules():
            if isinstance(module, (Backbone, TimmEncoder)) and (self.is_pretrained or module.config.name in self.files):
                donor = self._filled(module.config, module.options)
                module.network.load_state_dict(donor.state_dict(), strict=True)

    def _filled(self, config: BackboneConfig, options: dict[str, Any]) -> nn.Module:
        """The timm network with its weights; timm adapts the first convolution and drops the classifier."""
        overlay: dict[str, Any] = {}
        if config.name in self.files:
            overlay["state_dict"] = checkpoint(self.files[config.name], config)
        else:
            check_hub(config)
        try:
            return create_timm(config, pretrained=True, pretrained_cfg_overlay=overlay, **options)
        except ManifestError as error:
            raise TrainingError(f"{error}; {_INSTEAD}") from error
        except Exception as error:  # whatever the hub's client raises: it differs by version
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise TrainingError(f"backbone {config.name}: no pretrained weights ({reason}); {_INSTEAD}") from error


def backbone_of(stage: StageRecipe) -> BackboneConfig | None:
    """The timm network of an entry of a recipe; None where it has none."""
    backbone = getattr(stage.network, "backbone", None)
    return (BackboneConfig(backbone) if isinstance(backbone, str) else backbone) if backbone else None


def backbones(recipe: Recipe, entries: Collection[str] | None = None) -> list[BackboneConfig]:
    """The timm networks of a recipe, each once; ``entries`` are those that count, None for all."""
    chosen = [stage for name, stage in recipe.stages.items() if entries is None or name in entries]
    return list(dict.fromkeys(config for stage in chosen if (config := backbone_of(stage)) is not None))


def with_backbone(recipe: Recipe, name: str) -> Recipe:
    """The recipe with another timm network in every stage that has one; plain encoders stay.

    Raises:
        TrainingError: timm does not know the name.
    """
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('_')[0].split('.')[0]}*")[:5]) or "timm.list_models()"
        raise TrainingError(f"--backbone: timm {timm.__version__} knows no {name!r}, expected a name such as {near}")
    stages = {}
    for stage_name, stage in recipe.stages.items():
        backbone = getattr(stage.network, "backbone", None)
        if backbone:
            other = name if isinstance(backbone, str) else BackboneConfig(name)
            stage = replace(stage, network=replace(stage.network, backbone=other))
        stages[stage_name] = stage
    return replace(recipe, stages=stages)


def parse_files(words: list[str], recipe: Recipe) -> dict[str, Path]:
    """``FILE`` or ``NAME=FILE`` as checkpoints by backbone name.

    Raises:
        TrainingError: a file without a name where the recipe has several backbones.
    """
    names = sorted({config.name for config in backbones(recipe)})
    files = {}
    for word in words:
        name, equals, file = word.partition("=")
        if not equals:
            if len(names) != 1:
                raise TrainingError(
                    f"--backbone-weights {word}: recipe {recipe.name} has backbones {', '.join(names) or 'none'}, "
                    "expected NAME=FILE for each"
                )
            name, file = names[0], word
        files[name] = Path(file)
    return files


def checkpoint(path: Path, config: BackboneConfig) -> dict[str, Tensor]:
    """Tensors of a local timm checkpoint (``.safetensors``, or ``.pth`` without code in it) for a backbone.

    Raises:
        TrainingError: not there, not readable, or another network's.
    """
    if not path.is_file():
        raise TrainingError(f"{path}: not found, expected a timm checkpoint of {config.name}")
    try:
        state = dict(load_state_dict(str(path), weights_only=True))
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:120]
        raise TrainingError(f"{path}: not a readable checkpoint ({reason})") from error
    network = create_timm(config)
    cfg: Any = network.pretrained_cfg
    heads = tuple(f"{name}." for name in _names(cfg.get("classifier")))
    first = {f"{name}.weight" for name in _names(cfg.get("first_conv"))}
    expected = {name: value for name, value in network.state_dict().items() if not name.startswith(heads or "\0")}
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    if missing:
        raise TrainingError(f"{path}: holds no {missing[0]} ({len(missing)} such tensors), expected {config.name}'s")
    for name, value in expected.items():
        if name in state and not _agree(state[name], value, may_differ=name in first):
            shape, expected_shape = tuple(state[name].shape), tuple(value.shape)
            raise TrainingError(f"{path}: {name} has shape {shape}, expected {expected_shape} of {config.name}")
    return {name: state[name] for name in state if name in expected or name.startswith(heads or "\0")}


def _names(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def _agree(tensor: Any, wanted: Tensor, *, may_differ: bool) -> bool:
    """Whether shapes agree; with ``may_differ`` the number of input channels need not."""
    if not isinstance(tensor, torch.Tensor):
        return False
    a, b = list(tensor.shape), list(wanted.shape)
    return a == b or (may_differ and len(a) == len(b) > 1 and a[:1] + a[2:] == b[:1] + b[2:])


def check_hub(config: BackboneConfig) -> None:
    """Refuse at once where the hub's client would try for minutes.

    Raises:
        TrainingError: no such weights, or nothing to fetch them from.
    """
    if config.channels or config.stem_width or config.norm != "batch":
        raise TrainingError(
            f"backbone {config.name}: altered for this recipe, so no pretrained weights fit; {_INSTEAD}"
        )
    try:
        cfg = timm.get_pretrained_cfg(config.name)
    except RuntimeError:  # an unknown tag after the dot
        cfg = None
    if cfg is None or not (cfg.hf_hub_id or cfg.url or cfg.file):
        raise TrainingError(f"backbone {config.name}: timm {timm.__version__} has no weights for it; {_INSTEAD}")
    files = ("model.safetensors", "pytorch_model.bin")
    if cfg.hf_hub_id and any(isinstance(try_to_load_from_cache(cfg.hf_hub_id, file), str) for file in files):
        return
    if constants.HF_HUB_OFFLINE:
        raise TrainingError(f"backbone {config.name}: HF_HUB_OFFLINE is set and nothing is cached; {_INSTEAD}")
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return  # the proxy knows the way; its refusal is reported when it comes
    host = urlsplit(constants.ENDPOINT if cfg.hf_hub_id else str(cfg.url)).hostname or ""
    try:
        socket.create_connection((host, 443), timeout=_PROBE_SECONDS).close()
    except OSError as error:
        raise TrainingError(f"backbone {config.name}: {host} cannot be reached ({error}); {_INSTEAD}") from error
