"""Frozen configurations of the networks: everything that is needed to rebuild a network and to make its input.

The sizes of inputs and of layers stand together, since one is of no use without the other. The manifest stores the
whole dataclass and the kernel rebuilds the network from it; a key that it does not know is refused, not ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from lumbar.errors import ManifestError
from lumbar.labels import COLUMNS, DESCRIPTIONS
from lumbar.rules import AnyOf, Boolean, Integer, ListOf, Number, Object, Real, Rule, Text, require, shown

# The classifiers of every recipe, and of bundles that list none; an ensemble lists its own (``stages.classifiers``).
CLASSIFIERS = ("sagittal_classifier", "axial_subarticular", "axial_all")
STAGES = (
    "sagittal_xy",
    "sagittal_z",
    "axial_xy",
    *CLASSIFIERS,
    "aggregator",
)
MAX_MODELS = 64  # classifiers of one bundle
FUSION = "fusion"  # a classifier besides, of a bundle that says so: it reads what classifiers see (``stages.fuse``)
OPTIONAL_STAGES = ("series_contrast",)  # a bundle without them predicts the same, and decides some things otherwise

T = TypeVar("T")


@dataclass(frozen=True)
class BackboneConfig:
    """A timm network used as feature extractor: one input channel unless said otherwise, global average pool.

    ``channels`` narrows timm's ResNets; ``norm`` is ``batch`` (timm's own) or ``group`` (its statistics do not depend
    on the batch, which small batches and equal results on several GPUs need).
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

    Presence is that of the canal. With ``foramina_by_role`` only the slice roles choose the foramina's slices. Without
    it, as in older bundles, presence counts too, so that the most medial slice of each side is chosen.
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
    """Sagittal z: each slice, cut to a box around the five levels → how many levels are marked on it (14s10a).

    Counts of left foramina, right foramina and canal points.
    """

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

    With ``max_slices`` (0: off) every slice of both series enters instead of a window, at most so many of each, evenly
    thinned where there are more, and a slice's position is its distance in mm from the canal point of its level.
    ``conditions`` may add the subarticular pair, which reads T2 and T1 together. With ``per_series`` further series of
    a kind are further looks, whose logits are averaged; else the series with the surest point is the only one.
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
    max_slices: int = 0
    conditions: tuple[int, ...] = (0, 1, 2)
    per_series: bool = False


@dataclass(frozen=True)
class AxialClassifierConfig:
    """One level's axial crops → logits of ``conditions`` (indices into labels.CONDITIONS; 29a2 and 29g).

    The box is ``box_scale`` × the distance between the left and right points, within ``box_mm``. With ``per_series`` a
    window holds slices of one series, and further series over the same level are further looks at it, whose logits are
    averaged; else slices of all series stand in one window, by position.

    With ``max_slices`` (0: off) every slice within 0.7 of the gap between levels enters instead of a window, at most so
    many, evenly thinned where there are more, and a slice's position is its distance in mm from the level.
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
    max_slices: int = 0


@dataclass(frozen=True)
class AggregatorConfig:
    """Three small MLPs over every classifier's logits; ``models`` names the classifiers in the order of the input.

    With ``confidence`` the localiser's confidence in each level's points is an input as well.
    """

    models: tuple[str, ...] = CLASSIFIERS
    hidden: int = 32
    dropout: float = 0.0
    confidence: bool = False


@dataclass(frozen=True)
class LevelSequenceConfig(AggregatorConfig):
    """As ``AggregatorConfig``, with a bidirectional GRU of ``hidden`` units over the five levels for each MLP."""


@dataclass(frozen=True)
class FusionConfig:
    """Features of several classifiers of one fit → logits of one level (``lumbar.models.fusion``).

    ``widths`` are those of each member's features (``feature_width``). With ``share_sides`` left and right go through
    the same weights, which needs members that do the same.
    """

    members: tuple[str, ...]
    widths: tuple[int, ...]
    hidden: int = 16
    dropout: float = 0.5
    share_sides: bool = False


@dataclass(frozen=True)
class BaselineConfig:
    """One label column from whole 8-bit slices of one kind of series (the FastAI baseline): slice → 3 logits.

    ``slices`` central slices of each series enter (0: all), each a square of ``size`` pixels. ``balance`` holds the
    share of each class among the slices that the network was fitted on (after upsampling), from which its output is
    converted back to the true frequencies; 0 marks a class that it has never seen. Logits are divided by
    ``temperature``, chosen on held-out studies: above 1 where a network is overconfident.
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


@dataclass(frozen=True)
class SeriesContrastConfig:
    """T1, T2 or STIR from single slices, for series whose headers do not tell: slice → 3 logits.

    ``size`` pixels a side show ``field_mm`` around the image's centre; ``slices`` of a series are looked at.
    """

    size: int = 96
    field_mm: float = 230.0
    slices: int = 5
    widths: tuple[int, ...] = (24, 40, 64, 96)


# The registered name of each network and its configuration; ``lumbar.models`` adds the classes.
CONFIGS: dict[str, type] = {
    "heatmap": HeatmapConfig,
    "sagittal_regression": SagittalRegressionConfig,
    "axial_regression": AxialRegressionConfig,
    "slice_role": SliceRoleConfig,
    "sagittal_classifier": SagittalClassifierConfig,
    "axial_classifier": AxialClassifierConfig,
    "aggregator": AggregatorConfig,
    "level_sequence": LevelSequenceConfig,
    "fusion": FusionConfig,
    "baseline": BaselineConfig,
    "series_contrast": SeriesContrastConfig,
}

# What a configuration from a file may hold. The ranges are far wider than any recipe needs, and narrow enough that a
# network with any of these values fits into memory (before that, its shapes are compared with those in the file).
BACKBONE_NAME = Text(
    100,
    r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?",
    "the name of a timm network: letters, digits, _ and one dot (never a hub, an address or a folder)",
)
_SIZE, _HIDDEN, _WINDOW = Integer(8, 1024), Integer(1, 4096), Integer(1, 31)
_EMBEDDING, _SHARE, _SCALE, _MM = Integer(1, 1024), Real(0.0, 1.0), Real(0.0, 20.0, above=True), Real(0.0, 500.0)
_CROP: dict[str, Rule] = {
    "backbone": Object(),
    "size": _SIZE,
    "window": _WINDOW,
    "hidden": _HIDDEN,
    "level_embedding": _EMBEDDING,
    "position_embedding": _EMBEDDING,
    "share_sides": Boolean(),
    "dropout": _SHARE,
    "per_series": Boolean(),
    "max_slices": Integer(0, 64),
}
_AGGREGATOR: dict[str, Rule] = {
    "models": ListOf(Text(64, r"[a-z][a-z0-9_]*", "the name of a stage"), 1, MAX_MODELS, is_set=True),
    "hidden": _HIDDEN,
    "dropout": _SHARE,
    "confidence": Boolean(),
}
LIMITS: dict[type, dict[str, Rule]] = {
    BackboneConfig: {
        "name": BACKBONE_NAME,
        "channels": ListOf(Integer(1, 4096), 0, 8),
        "stem_width": Integer(0, 512),
        "norm": Text(5, "batch|group", "'batch' or 'group'"),
        "drop_path": _SHARE,
    },
    HeatmapConfig: {
        "points": Integer(1, 64),
        "size": _SIZE,
        "mm_per_px": Real(0.0, 50.0, above=True),
        "context": _WINDOW,
        "widths": ListOf(Integer(8, 1024, step=8), 2, 8),
        "segments": Integer(0, 64),
        "sigma_mm": Real(0.0, 100.0, above=True),
        "sigma_through_mm": Real(0.0, 100.0, above=True),
        "backbone": AnyOf((BACKBONE_NAME, Text(0, "", "nothing"))),
    },
    SagittalRegressionConfig: {
        "backbone": Object(),
        "size": _SIZE,
        "context": _WINDOW,
        "foramina_by_role": Boolean(),
    },
    AxialRegressionConfig: {"backbone": Object(), "size": _SIZE},
    SliceRoleConfig: {"backbone": Object(), "size": _SIZE, "hidden": _HIDDEN, "box_scale": _SCALE},
    SagittalClassifierConfig: {
        **_CROP,
        "crop_scale": _SCALE,
        "min_half_mm": _MM,
        "own_sequences": Boolean(),
        "conditions": ListOf(Integer(0, 4), 3, 5, is_set=True),
    },
    AxialClassifierConfig: {
        **_CROP,
        "conditions": ListOf(Integer(0, 4), 1, 5, is_set=True),
        "box_scale": _SCALE,
        "box_mm": ListOf(Real(0.0, 500.0, above=True), 2, 2),
    },
    AggregatorConfig: _AGGREGATOR,
    LevelSequenceConfig: _AGGREGATOR,
    FusionConfig: {
        "members": _AGGREGATOR["models"],
        "widths": ListOf(Integer(1, 8192), 1, MAX_MODELS),
        "hidden": _HIDDEN,
        "dropout": _SHARE,
        "share_sides": Boolean(),
    },
    SeriesContrastConfig: {
        "size": _SIZE,
        "field_mm": Real(0.0, 1000.0, above=True),
        "slices": Integer(1, 64),
        "widths": ListOf(Integer(8, 1024, step=8), 1, 8),
    },
    BaselineConfig: {
        "backbone": Object(),
        "column": Text(64),  # ``check_baseline`` has the ranges of these four: training uses it as well
        "description": Text(64),
        "size": Integer(1, 1024),
        "temperature": Number(),
        "slices": Integer(0, 1000),
        "hidden": _HIDDEN,
        "dropout": _SHARE,
        "balance": ListOf(_SHARE, 3, 3),
    },
}


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON types."""
    values = dataclasses.asdict(config)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def from_dict(kind: type[T], values: Mapping[str, Any]) -> T:
    """Rebuild a configuration of class ``kind`` from plain JSON types; lists become tuples.

    Raises:
        ManifestError: a key that ``kind`` does not have, a required one that is missing, or a value of another type or
            out of range (``LIMITS``).
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ManifestError(f"{kind.__name__}: unknown keys {shown(unknown)}, expected a subset of {sorted(fields)}")
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING:
            raise ManifestError(f"{kind.__name__}: {name} missing, expected {LIMITS[kind][name].expected}")
    for name, value in values.items():
        require(f"{kind.__name__}.{name}", value, LIMITS[kind][name])
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if isinstance(backbone := values.get("backbone"), Mapping):
        arguments["backbone"] = from_dict(BackboneConfig, backbone)
    config = kind(**arguments)
    _require_consistent(config)
    return config


def _require_consistent(config: Any) -> None:
    """Refuse values that contradict each other although each is in its range."""
    name = type(config).__name__
    if isinstance(config, AxialClassifierConfig) and config.box_mm[0] > config.box_mm[1]:
        raise ManifestError(f"{name}.box_mm: found {config.box_mm}, expected the smaller limit first")
    if isinstance(config, SagittalClassifierConfig) and config.conditions not in ((0, 1, 2), (0, 1, 2, 3, 4)):
        raise ManifestError(f"{name}.conditions: found {config.conditions}, expected (0, 1, 2) or (0, 1, 2, 3, 4)")
    if isinstance(config, FusionConfig) and len(config.members) != len(config.widths):
        raise ManifestError(f"{name}.widths: found {len(config.widths)}, expected one for each of {config.members}")
    if isinstance(config, BaselineConfig):
        check_baseline(config)


def check_baseline(config: BaselineConfig) -> None:
    """Refuse a column, description, size, balance or temperature that is not possible.

    Raises:
        ManifestError: naming the value and what was expected.
    """
    if config.column not in COLUMNS:
        raise ManifestError(f"baseline: found column {config.column!r}, expected one of the 25 label columns")
    if config.description not in DESCRIPTIONS:
        raise ManifestError(f"baseline: found series {config.description!r}, expected one of {', '.join(DESCRIPTIONS)}")
    if config.size < 16 or config.slices < 0:
        raise ManifestError(
            f"baseline: found size {config.size} and slices {config.slices}, expected 16 or more and 0 or more"
        )
    if len(config.balance) != 3 or min(config.balance) < 0 or abs(sum(config.balance) - 1) > 1e-3:
        raise ManifestError(f"baseline: found balance {config.balance}, expected three shares that sum to 1")
    if not 0 < config.temperature < float("inf"):
        raise ManifestError(f"baseline: found temperature {config.temperature}, expected more than 0")
