"""The settings that decide what a baseline run computes; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lumbar.config import BackboneConfig, BaselineConfig
from lumbar.errors import CohortError
from lumbar.labels import COLUMNS, DESCRIPTIONS, SAGITTAL_T1

# Below 0.5 M parameters, for two CPU cores: timm's ten-layer ResNet with fewer channels.
SMALL = BackboneConfig("resnet10t", channels=(16, 32, 64, 128), stem_width=8)
ARCHS = {"small": SMALL}
FROM_SCRATCH_LR_MULT = 1.0


@dataclass(frozen=True)
class Settings:
    """What a baseline run sees, and how it fits its networks.

    Attributes:
        arch: ``small``, or any timm name.
        pretrained: start the body from timm's weights (needs the internet).
        description: which series.
        size: height and width of an image in pixels.
        slices: central slices of each series, 0 for all.
        epochs: with all layers.
        freeze_epochs: with the head alone, before that.
        base_lr: peak rate of the head; 0 lets the finder choose, for each fit on its own training images.
        lr_mult: how many times slower than the head the first layers learn once all are trained. None means fastai's
            100 with pretrained weights, because slow layers keep what they have learnt before, and 1 without.
        batch_size: images per step.
        weight_decay: decoupled, not on norms and biases.
        finder_steps: steps of the range test.
        stop_accuracy: continue until a fifth of the training studies, kept apart, is classified this well; 0 is off.
        max_epochs: most epochs with ``stop_accuracy``.
        seed: of everything random.
        amp: half precision of the training steps, as in ``LoopConfig``.
    """

    arch: str = "resnet34"
    pretrained: bool = False
    description: str = SAGITTAL_T1
    size: int = 256
    slices: int = 0
    epochs: int = 4
    freeze_epochs: int = 1
    base_lr: float = 0.0
    lr_mult: float | None = None
    batch_size: int = 64
    weight_decay: float = 0.01
    finder_steps: int = 100
    stop_accuracy: float = 0.0
    max_epochs: int = 20
    seed: int = 0
    amp: str = "auto"

    def network(self, column: str, balance: tuple[float, float, float] = (1 / 3, 1 / 3, 1 / 3)) -> BaselineConfig:
        """The configuration of a column's network."""
        backbone = ARCHS.get(self.arch, BackboneConfig(self.arch))
        return BaselineConfig(
            backbone, column, self.description, self.size, self.slices, balance=tuple(round(x, 6) for x in balance)
        )

    @property
    def body_lr_mult(self) -> float:
        """How many times slower than the head the first layers learn."""
        if self.lr_mult is not None:
            return self.lr_mult
        return 100.0 if self.pretrained else FROM_SCRATCH_LR_MULT


def check_settings(settings: Settings) -> None:
    """Refuse values out of range.

    Raises:
        CohortError: names the option, the value found and what is allowed.
    """
    if settings.description not in DESCRIPTIONS:
        raise CohortError(f"--description: found {settings.description!r}, expected one of {', '.join(DESCRIPTIONS)}")
    for name, least in (("size", 32), ("slices", 0), ("epochs", 1), ("freeze_epochs", 0), ("batch_size", 2),
                        ("finder_steps", 10)):  # fmt: skip
        if getattr(settings, name) < least:
            option = name.replace("_", "-")
            raise CohortError(f"--{option}: found {getattr(settings, name)}, expected {least} or more")
    if not 0 <= settings.stop_accuracy < 1:
        raise CohortError(f"--stop-accuracy: found {settings.stop_accuracy}, expected 0 (off) to below 1")
    if settings.max_epochs < settings.epochs:
        raise CohortError(f"--max-epochs: found {settings.max_epochs}, expected --epochs {settings.epochs} or more")


def choose_columns(names: str | None) -> list[str]:
    """Parse --columns: columns or whole conditions separated by commas; all 25 columns if nothing is given.

    Raises:
        CohortError: a name is neither a column nor a condition.
    """
    if not names:
        return list(COLUMNS)
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if not any(column == name or column.startswith(f"{name}_l") for column in COLUMNS):
            raise CohortError(f"--columns: found {name!r}, expected label columns such as {COLUMNS[0]}")
    return [c for c in COLUMNS if any(c == name or c.startswith(f"{name}_l") for name in wanted)]


def refuse_fits(out: Path, resume: bool) -> None:
    """Refuse a folder that has fits, unless they are to be gone on with.

    Raises:
        CohortError: what can be done.
    """
    if (out / "fits").is_dir() and not resume:
        raise CohortError(f"{out}: holds fits, add --resume to go on with it or name another folder")
