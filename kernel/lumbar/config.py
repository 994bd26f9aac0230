"""Frozen configurations of the networks. What stands here is enough to rebuild a network and feed it.

Sizes of inputs live beside sizes of layers, because one is wrong without the other: the manifest stores the whole
dataclass, the kernel rebuilds from it, and a key that it does not know is refused rather than ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from lumbar.errors import ManifestError

STAGES = (
    "sagittal_xy",
    "sagittal_z",
    "axial_xy",
    "sagittal_classifier",
    "axial_subarticular",
    "axial_all",
    "aggregator",
)

T = TypeVar("T")


@dataclass(frozen=True)
class BackboneConfig:
    """A timm network used as feature extractor: one input channel unless said otherwise, global average pool.

    ``channels`` narrows timm's ResNets; ``norm`` is ``batch`` (timm's own) or ``group`` (statistics never depend on
    the batch, needed for small batches and equal results on several ranks).
    """

    name: str
    channels: tuple[int, ...] = ()
    stem_width: int = 0
    norm: str = "batch"
    drop_path: float = 0.0


@dataclass(frozen=True)
class HeatmapConfig:
    """Heatmap localiser on a fixed millimetre grid. ``points`` heatmaps at half the grid's resolution.

    ``widths`` are the channels at strides 2, 4, 8, …; a non-empty ``backbone`` takes timm features instead of the
    plain encoder. ``context`` neighbouring slices enter as channels (1 = the slice alone).
    """

    points: int
    size: int = 256
    mm_per_px: float = 1.3
    context: int = 3
    widths: tuple[int, ...] = (16, 32, 48, 64, 96)
    segments: int = 5
    sigma_mm: float = 4.0
    sigma_through_mm: float = 3.5
    backbone: str = ""


@dataclass(frozen=True)
class SagittalRegressionConfig:
    """Sagittal xy as coordinates: 5 neighbouring slices → 5 levels × (x, y) in 0..1 plus presence (solution 14p2).

    Presence is that of the canal. With ``foramina_by_role`` the slice roles alone choose the foramina's slices; else
    presence does so too, as in bundles of before, and the most medial slice of each side wins.
    """

    backbone: BackboneConfig
    size: int = 512
    context: int = 5
    foramina_by_role: bool = False


@dataclass(frozen=True)
class AxialRegressionConfig:
    """Axial xy as coordinates: one slice → left (x, y), right (x, y) in 0..1 (solution 05b5)."""

    backbone: BackboneConfig
    size: int = 384


@dataclass(frozen=True)
class SliceRoleConfig:
    """Sagittal z: a box around the five levels in every slice → levels marked on it: left, right, canal (14s10a)."""

    backbone: BackboneConfig
    size: int = 512
    hidden: int = 512
    box_scale: float = 1.4


@dataclass(frozen=True)
class SagittalClassifierConfig:
    """One level's crops over T2 canal slices and T1 slices of both sides → canal and foraminal logits (12y8).

    ``window`` slices around the role's slice; the crop's half side is ``crop_scale`` × the larger distance to a
    neighbouring level, at least ``min_half_mm``. ``share_sides`` feeds both sides through the same weights, ordered
    from the midline outwards, so that a mirrored patient gives mirrored logits exactly. Without it ``own_sequences``
    lets each head read its own window's mean alone (12y8); else one mean of all three feeds every head.
    """

    backbone: BackboneConfig
    size: int = 256
    window: int = 7
    crop_scale: float = 1.1
    min_half_mm: float = 20.0
    hidden: int = 512
    level_embedding: int = 32
    position_embedding: int = 32
    share_sides: bool = False
    dropout: float = 0.0
    own_sequences: bool = False


@dataclass(frozen=True)
class AxialClassifierConfig:
    """One level's axial crops → logits of ``conditions`` (indices into labels.CONDITIONS; 29a2 and 29g).

    The box is ``box_scale`` × the distance between the left and right points, within ``box_mm``. With ``per_series`` a
    window holds slices of one series, and further series over the same level are further looks at it, whose logits are
    averaged; else slices of all series stand in one window, by position.
    """

    backbone: BackboneConfig
    conditions: tuple[int, ...] = (3, 4)
    size: int = 384
    window: int = 5
    box_scale: float = 2.0
    box_mm: tuple[float, float] = (36.0, 90.0)
    hidden: int = 768
    level_embedding: int = 32
    position_embedding: int = 32
    share_sides: bool = False
    dropout: float = 0.0
    per_series: bool = False


@dataclass(frozen=True)
class AggregatorConfig:
    """Three small MLPs over every classifier's logits; ``models`` names the classifiers in the order of the input.

    ``confidence``: how sure localisation was of each level's points is an input as well.
    """

    models: tuple[str, ...] = ("sagittal_classifier", "axial_subarticular", "axial_all")
    hidden: int = 32
    dropout: float = 0.0
    confidence: bool = False


@dataclass(frozen=True)
class LevelSequenceConfig(AggregatorConfig):
    """The same with a bidirectional GRU of ``hidden`` units over the five levels in the place of each MLP."""


@dataclass(frozen=True)
class BaselineConfig:
    """One label column from whole 8-bit slices of one kind of series (the FastAI baseline): slice → 3 logits.

    ``slices`` central slices of each series enter (0: all), each a square of ``size`` pixels. ``balance`` holds the
    share of each class in what the network was fitted on (after upsampling), so that its answer can be turned back to
    the frequencies that the metric weighs; 0 marks a class that it has never seen. Logits are divided by
    ``temperature``, chosen on held-out studies: above 1 where a network is surer than it is right.
    """

    backbone: BackboneConfig
    column: str
    description: str = "Sagittal T1"
    size: int = 256
    slices: int = 0
    hidden: int = 512
    dropout: float = 0.5
    balance: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3)
    temperature: float = 1.0


def to_dict(config: Any) -> dict[str, Any]:
    """Plain JSON types of a configuration dataclass."""
    values = dataclasses.asdict(config)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def from_dict(kind: type[T], values: Mapping[str, Any]) -> T:
    """Rebuild a configuration; lists become tuples.

    Raises:
        ManifestError: a key that ``kind`` does not know, or one that it needs and is missing.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ManifestError(f"{kind.__name__}: unknown keys {unknown}, expected a subset of {sorted(fields)}")
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        if name == "backbone" and isinstance(value, Mapping):
            value = from_dict(BackboneConfig, value)
        arguments[name] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**arguments)
    except TypeError as error:
        raise ManifestError(f"{kind.__name__}: {error}") from None
