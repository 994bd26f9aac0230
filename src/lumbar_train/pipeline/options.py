"""What a run is asked for: every option of ``train``, in one value that is checked before anything is read."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumbar.io.arguments import python_word
from lumbar.workers.budget import parse_time_limit
from lumbar_train.errors import TrainingError
from lumbar_train.pipeline.names import AMP, SHIP, USES

# What decides what is trained, beside data, recipe and folds; the rest decides how fast, and where.
_DECIDE = (
    "overrides", "full_epochs", "full_seeds", "backbone", "pretrained", "backbone_weights", "points", "points_use",
    "seed", "amp", "init", "ship",
)  # fmt: skip
NO_CACHE = Path("none")  # as ``cache``: no folder
_HOW = ("cache", "workers", "jobs", "loaders", "device", "memory", "time_limit")  # and with what
_NOT_BESIDE_LOCALISERS = {
    "taken_from": "--resume FROM, whose run has localisers of its own, expected one of the two",
    "overwrite": "--overwrite, expected it once, when the run begins; later the run keeps them without the option",
    "fold_file": "--fold-file, expected no other folds than those of the localisers",
}
Words = Iterable[str] | Mapping[str, Any]


@dataclass(frozen=True)
class TrainOptions:
    """The options of ``lumbar_train.train`` and of its command line, as plain values.

    Attributes:
        data: folder in the competition's layout.
        out: run folder to write.
        recipe: ``demo``, ``model2`` or ``strong``.
        folds: of ``"0,1,full"``, or a list such as ``[0, 1, "full"]``; None for all, which later stages need.
        fold_file: table ``study_id, fold`` such as ``train_folded_v1.csv``; None makes folds, or takes the run's own.
        stages: names, in a list or with commas between; None for all of the recipe.
        points: CSV of external points of sagittal levels: ``series_id, instance_number, level, x, y[, img_h, img_w]``.
        points_use: ``beside``: external points where the competition has none, and on further slices; ``instead``:
            before the competition's.
        resume: go on with the run that the folder holds: finished fits stay, one that was interrupted goes on. A path
            is the folder of a run that ``out`` takes over first: it may be read-only, or of another machine.
        overwrite: fit again what this call asks for in a folder that holds a run; its other fits stay. A folder that
            holds a run is refused without one of the two.
        seed: of folds, initial weights, order and augmentation.
        cache: folder of decoded studies; ``none`` keeps none: slices are decoded from the DICOM files when asked for;
            None for ``cache`` in the run folder where the disk has room for it, else none.
        workers: processes that decode; 0 decodes in this one, None takes one for each core.
        jobs: folds side by side, over the GPUs at hand.
        loaders: processes that prepare samples for each fit; None for the cores of the machine shared out among the
            fits that go side by side on GPUs, and none on CPUs.
        device: ``cpu``, ``cuda``, ``cuda:1``, …; ``auto`` is a GPU where there is one.
        amp: half precision of the fits: ``auto`` (by GPU; on CPUs bf16 where it is faster, which is measured once a
            run), ``off``, ``bf16`` (float32 on CPUs that are faster in it), ``fp16``.
        full_seeds: fits on all data, each with its own seed; None for the recipe's number.
        full_epochs: epochs of a stage's fits on all data, as ``{"axial_all": 20}`` or words ``axial_all=20``.
        overrides: other values for fields of the recipe, as ``{"axial_all.size": 96}`` or words
            ``axial_all.size=96`` (``--set``).
        backbone: any timm network instead of the recipe's.
        pretrained: start backbones from timm's weights, fetched from its hub; None for the recipe's choice.
        backbone_weights: local timm checkpoints, as ``{"resnet18": file}`` or words ``[NAME=]FILE``.
        memory: that batches are cut to fit, such as ``16GB``; None for what the GPU has free (batches on a CPU stay
            whole).
        time_limit: after which training ends in order, to be gone on with: ``11.5h``, ``30m``, ``90s`` or seconds.
        init: folder of another run whose weights fits start from, stage by stage, where shapes agree.
        localisers: folder of another run on the same studies whose localisers, what they say of held-out studies, and
            folds are taken over, so that only classifiers and what follows are fitted.
        ship: the fits that are exported: ``full`` (on all data), ``folds`` or ``all``; None for the recipe's choice.
    """

    data: Path
    out: Path
    recipe: str = "demo"
    folds: str | None = None
    fold_file: Path | None = None
    stages: tuple[str, ...] | None = None
    points: Path | None = None
    points_use: str = USES[0]
    resume: bool | Path = False
    overwrite: bool = False
    seed: int = 0
    cache: Path | None = None
    workers: int | None = None
    jobs: int = 1
    loaders: int | None = None
    device: str = "auto"
    amp: str = AMP[0]
    full_seeds: int | None = None
    full_epochs: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    backbone: str | None = None
    pretrained: bool | None = None
    backbone_weights: tuple[str, ...] = ()
    memory: str | None = None
    time_limit: str | float | None = None
    init: Path | None = None
    localisers: Path | None = None
    ship: str | None = None

    @classmethod
    def of(cls, **given: Any) -> TrainOptions:
        """Take options in any of the forms that ``train`` takes: paths as text, folds and stages as lists, ..."""
        plain = {name: _PLAIN[name](value) if name in _PLAIN else value for name, value in given.items()}
        return cls(**plain)

    def __post_init__(self) -> None:
        for name, choices in (("points_use", USES), ("amp", AMP)):
            if getattr(self, name) not in choices:
                raise TrainingError(f"{name}: found {getattr(self, name)!r}, expected one of {', '.join(choices)}")
        for name, least in (("workers", 0), ("jobs", 1), ("loaders", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise TrainingError(f"{name}: found {value}, expected {least} or more")
        if self.resume and self.overwrite:
            raise TrainingError("resume, overwrite: found both, expected one: go on, or fit again")
        for name, why in _NOT_BESIDE_LOCALISERS.items() if self.localisers is not None else ():
            if getattr(self, name):
                raise TrainingError(f"--localisers {self.localisers}: found it beside {why}")
        if self.ship not in (None, *SHIP):
            raise TrainingError(f"ship: found {self.ship!r}, expected one of {', '.join(SHIP)}")
        if self.limit_s is not None and self.limit_s <= 0:
            raise TrainingError(f"--time-limit: found {self.time_limit}, expected more than 0")

    @property
    def limit_s(self) -> float | None:
        """Seconds that training is given; None without a limit."""
        return None if self.time_limit is None else parse_time_limit(self.time_limit)

    @property
    def taken_from(self) -> Path | None:
        """The folder of a run that is taken over; None where ``out`` holds the run, or none is gone on with."""
        return None if isinstance(self.resume, bool) else self.resume

    @property
    def n_workers(self) -> int:
        """Processes that decode; by default one for each core."""
        return self.workers if self.workers is not None else os.cpu_count() or 1

    def n_loaders(self, device_type: str) -> int:
        """Processes that prepare samples for each fit; by default what the machine has.

        On a GPU the cores are shared out among the fits that go side by side, one core of each share being left to the
        fit itself. On a CPU the fits themselves take all cores.
        """
        if self.loaders is not None:
            return self.loaders
        if device_type == "cpu":
            return 0
        fits = max(self.jobs, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        return max(1, cores() // fits - 1)

    def n_processes(self, device_type: str) -> int:
        """Processes of this machine that read studies at the same time: fits, each with its loaders."""
        fits = max(self.jobs, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        return fits * (1 + self.n_loaders(device_type))

    def changes(self) -> tuple[str, ...]:
        """What changes the recipe, as ``--set`` and its short forms say it."""
        short = [f"backbone={self.backbone}"] if self.backbone is not None else []
        return (*short, *(f"full-epochs {word}" for word in self.full_epochs), *self.overrides)

    def next_command(self) -> str:
        """The command line of the next session: this one's, going on with what it left."""
        some = [f"--stages {','.join(self.stages)}"] if self.stages else []
        some += [f"--folds {self.folds}"] if self.folds else []
        return " ".join([self.whole_command(), *some])

    def whole_command(self) -> str:
        """The command line that goes on with the run in the same way, with all stages and folds."""
        return self.command((*_DECIDE, *_HOW))

    def command(self, names: Iterable[str] = _DECIDE) -> str:
        """A command line that goes on with the run as it is trained, without stages and folds.

        What differs from the defaults is in it, of the options ``names``.
        """
        words = [python_word(), "-m", "lumbar_train", "train", "--data", str(self.data), "--recipe", self.recipe]
        words += ["--out", str(self.out)]
        for name in names:
            value = getattr(self, name)
            option = f"--{'set' if name == 'overrides' else name.replace('_', '-')}"
            if value == TrainOptions.__dataclass_fields__[name].default:
                continue
            if isinstance(value, bool):
                words.append(option if value else option.replace("--", "--no-", 1))
                continue
            for word in value if isinstance(value, tuple) else (value,):
                words += [option, str(word)]
        return shlex.join([*words, "--resume"])


def cores() -> int:
    """Cores that this process may use, which in a container may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)


def as_cache(value: str | Path | None) -> Path | None:
    """The folder of a cache; the word ``none`` in any case is ``NO_CACHE``."""
    return NO_CACHE if str(value).lower() == str(NO_CACHE) and value is not None else _path(value)


def _resume(value: bool | str | Path) -> bool | Path:
    return value if isinstance(value, bool) else Path(value)


# How each option that takes several forms becomes a plain value
_PLAIN: dict[str, Callable[[Any], Any]] = {
    "data": Path,
    "out": Path,
    "folds": as_folds,
    "fold_file": _path,
    "stages": as_stages,
    "points": _path,
    "cache": as_cache,
    "resume": _resume,
    "init": _path,
    "localisers": _path,
    "full_epochs": as_words,
    "overrides": as_words,
    "backbone_weights": as_words,
}
