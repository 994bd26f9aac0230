"""The options of ``lumbar_train train`` that a training on Kaggle takes, and the files that they name."""

from __future__ import annotations

import argparse
from pathlib import Path

from lumbar.errors import LumbarError
from lumbar.io.path_options import FILE, did_you_mean_path
from lumbar_publish.training.plan import GIVEN

_REPEATED = {"overrides": "--set", "full_epochs": "--full-epochs"}
_PLAIN = ("backbone", "seed", "full_seeds", "amp", "points_use", "memory", "ship")
_FILES = ("points", "fold_file")


def add_training_options(group: argparse._ArgumentGroup) -> None:
    """Add them; the code that ships checks their values."""
    add = group.add_argument
    add("--set", dest="overrides", action="append", default=[], metavar="STAGE.FIELD=VALUE", help="may be repeated")
    add("--backbone", metavar="NAME", help="any timm backbone instead of the recipe's")
    add("--pretrained", action=argparse.BooleanOptionalAction, help="fetch timm's weights; default: as the recipe")
    add(
        "--backbone-weights",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="a local timm checkpoint, which goes along in the dataset: no internet is needed; may be repeated",
    )
    add("--points", type=FILE, metavar="FILE", help="external points, which go along in the dataset")
    add("--points-use", metavar="HOW", help="beside or instead")
    add("--fold-file", type=FILE, metavar="FILE", help="table study_id, fold")
    add("--seed", metavar="N", help="default: 0")
    add("--full-seeds", metavar="N", help="fits on all data")
    add("--full-epochs", action="append", default=[], metavar="STAGE=N", help="may be repeated")
    add("--amp", metavar="HOW", help="auto, off, bf16 or fp16")
    add("--ship", metavar="WHICH", help="fits that are exported: full, folds or all")
    add("--memory", metavar="16GB", help="cut batches to fit; default: what the GPU there has")


def training_arguments(options: argparse.Namespace) -> tuple[list[str], list[tuple[str, Path]]]:
    """The words for ``lumbar_train train``, and the files that go along with them.

    Raises:
        LumbarError: a file that is not there, or two of one name.
    """
    words: list[str] = []
    files: dict[str, Path] = {}
    for name in _FILES:
        path: Path | None = getattr(options, name)
        if path is not None:
            words += [_option(name), _take(path, files)]
    for word in options.backbone_weights:
        name, equals, file = word.rpartition("=")
        words += ["--backbone-weights", f"{name}{equals}{_take(Path(file), files)}"]
    if options.pretrained is not None:
        words.append("--pretrained" if options.pretrained else "--no-pretrained")
    for name in _PLAIN:
        if getattr(options, name) is not None:
            words += [_option(name), str(getattr(options, name))]
    for name, option in _REPEATED.items():
        for word in getattr(options, name):
            words += [option, word]
    return words, sorted(files.items())


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _take(path: Path, files: dict[str, Path]) -> str:
    """The word that stands for a file on Kaggle."""
    if not path.is_file():
        raise LumbarError(
            f"{path}: found no such file, expected one to take to Kaggle{did_you_mean_path(path, 'file')}"
        )
    if files.setdefault(path.name, path) != path:
        raise LumbarError(f"{path}: found two files named {path.name}, expected different names")
    return f"{GIVEN}{path.name}"
