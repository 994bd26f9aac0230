"""What a run is asked for: every option of ``train``, in one value that is checked before anything is read."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumbar_train.data.external_points import USES
from lumbar_train.errors import TrainingError

AMP = ("auto", "off", "bf16", "fp16")
# What decides what is trained, beside data, recipe and folds; the rest decides how fast, and where.
_DECIDE = (
    "overrides", "full_epochs", "full_seeds", "backbone", "pretrained", "backbone_weights", "points", "points_use",
    "seed", "amp",
)  # fmt: skip
Words = Iterable[str] | Mapping[str, Any]


@dataclass(frozen=True)
class TrainOptions:
    """The options of ``lumbar_train.train``, which explains them, as plain values.

    ``overrides``, ``full_epochs`` and ``backbone_weights`` are words as the command line takes them.
    """

    data: Path
    out: Path
    recipe: str = "demo"
    folds: str | None = None
    fold_file: Path | None = None
    stages: tuple[str, ...] | None = None
    points: Path | None = None
    points_use: str = USES[0]
    resume: bool = False
    seed: int = 0
    cache: Path | None = None
    workers: int | None = None
    jobs: int = 1
    loaders: int = 0
    device: str = "auto"
    amp: str = AMP[0]
    full_seeds: int | None = None
    full_epochs: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    backbone: str | None = None
    pretrained: bool | None = None
    backbone_weights: tuple[str, ...] = ()
    memory: str | None = None

    def __post_init__(self) -> None:
        for name, choices in (("points_use", USES), ("amp", AMP)):
            if getattr(self, name) not in choices:
                raise TrainingError(f"{name}: found {getattr(self, name)!r}, expected one of {', '.join(choices)}")
        for name, least in (("workers", 0), ("jobs", 1), ("loaders", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise TrainingError(f"{name}: found {value}, expected {least} or more")

    @property
    def n_workers(self) -> int:
        """Processes that decode; by default one for each core."""
        return self.workers if self.workers is not None else os.cpu_count() or 1

    def changes(self) -> tuple[str, ...]:
        """What changes the recipe, as ``--set`` and its short forms say it."""
        short = [f"backbone={self.backbone}"] if self.backbone is not None else []
        return (*short, *(f"full-epochs {word}" for word in self.full_epochs), *self.overrides)

    def command(self) -> str:
        """A command line that trains the same, without stages and folds: what differs from the defaults is in it."""
        words = ["python", "-m", "lumbar_train", "train", "--data", str(self.data), "--recipe", self.recipe]
        words += ["--out", str(self.out)]
        for name in _DECIDE:
            value = getattr(self, name)
            option = f"--{'set' if name == 'overrides' else name.replace('_', '-')}"
            if value == TrainOptions.__dataclass_fields__[name].default:
                continue
            if isinstance(value, bool):
                words.append(option if value else option.replace("--", "--no-", 1))
                continue
            for word in value if isinstance(value, tuple) else (value,):
                words += [option, str(word)]
        return shlex.join(words)


def as_words(values: Words) -> tuple[str, ...]:
    """``{"axial_all.size": 96}`` as ``("axial_all.size=96",)``; words stay as they are."""
    if isinstance(values, str):
        return (values,)
    if isinstance(values, Mapping):
        return tuple(f"{name}={_text(value)}" for name, value in values.items())
    return tuple(map(str, values))


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def as_folds(folds: str | Iterable[int | str] | None) -> str | None:
    """Folds as the command line takes them: ``0,1,full``."""
    return folds if folds is None or isinstance(folds, str) else ",".join(map(str, folds))


def as_stages(stages: str | Iterable[str] | None) -> tuple[str, ...] | None:
    """Names of stages, from one text with commas or from several; None (or an empty text) for all."""
    if stages is None or stages == "":
        return None
    return tuple(name.strip() for name in (stages.split(",") if isinstance(stages, str) else stages))
