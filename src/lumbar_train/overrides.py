"""``--set STAGE.FIELD=VALUE``: any field of a recipe from the command line, checked against the dataclasses.

STAGE is a stage, ``*`` for every stage that has the field, or ``recipe`` for what belongs to none. FIELD is a field of
the stage's network, fit, augmentation or mixing (``network.``, ``fit.``, ``augment.``, ``mixing.`` before it says
which); ``backbone`` takes a timm name, and ``backbone.FIELD`` one of its fields; a heatmap network's may be ``none``.
Tuples are written with commas.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable
from typing import Any, get_args, get_origin, get_type_hints

import timm
import torch

from lumbar.config import BackboneConfig, to_dict
from lumbar.errors import CohortError, LumbarError
from lumbar.models import build, name_of
from lumbar_train.data.augment import AugmentConfig
from lumbar_train.data.mixing import MixConfig
from lumbar_train.outputs.kept import FIXED
from lumbar_train.recipes import Recipe, StageRecipe
from lumbar_train.stages.consistency import ConsistencyConfig
from lumbar_train.stages.denoise import DenoiseConfig
from lumbar_train.stages.fusion import FusionRecipe
from lumbar_train.stages.pseudo import PseudoConfig
from lumbar_train.stages.registry import stage_by_name

PARTS = ("network", "fit", "augment", "mixing")
_SHARES = {
    "warmup", "ema", "dropout", "drop_path", "cutmix", "mixup", "slices", "contrast", "invert", "blur", "hole",
    "below", "most", "hole_side", "shift", "move", "keep_slices", "share", "margin",
}  # fmt: skip
_FROM_ZERO = {
    "weight_decay", "fold_epochs", "metric_epochs", "metric_lr", "stem_width", "segments", "level_embedding",
    "position_embedding", "shift_mm", "turn_deg", "stretch", "shading", "noise", "min_half_mm",
    "max_slices", "most_foraminal", "most_canal", "most_subarticular",
}  # fmt: skip
_PAIRS = {"box_mm", "holes", "hole_side", "keep_slices"}  # a smallest and a largest value
_CHOICES = {"norm": ("batch", "group"), "export": ("full", "folds", "all")}
_SWITCHES = {  # of a recipe
    "denoise": DenoiseConfig, "pseudo": PseudoConfig, "consistency": ConsistencyConfig, "fusion": FusionRecipe,
}  # fmt: skip


def with_overrides(recipe: Recipe, words: Iterable[str]) -> Recipe:
    """The recipe with fields changed by words ``STAGE.FIELD=VALUE``, in their order; networks are built once to try.

    ``epochs`` holds for every fit of a stage: one whose recipe has other ``fold_epochs`` loses them, unless a word sets
    these too.

    Raises:
        CohortError: no such stage or field (with a suggestion), or a value that cannot be, in one line.
    """
    words = list(words)
    changed: set[str] = set()
    targets = [_stage_and_path(word) for word in words]
    with_fold_epochs = {stage for stage, path in targets if path in ("fold_epochs", "fit.fold_epochs")}
    for word in words:
        target, equals, text = word.partition("=")
        stage, _, path = target.partition(".")
        if not (equals and path and text):
            raise CohortError(f"--set: found {word!r}, expected STAGE.FIELD=VALUE")
        if stage == "recipe":
            recipe = _with_recipe_field(recipe, path, text, word)
            continue
        if stage != "*" and stage not in recipe.stages:
            raise CohortError(f"--set: found stage {stage!r}, expected {_near(stage, [*recipe.stages, '*', 'recipe'])}")
        names = list(recipe.stages) if stage == "*" else [stage]
        stages = {name: _with_field(recipe.stages[name], name, path, text, word) for name in names}
        changed_stages = {name: value for name, value in stages.items() if value is not None}
        if path in ("epochs", "fit.epochs") and "*" not in with_fold_epochs:
            for name in changed_stages.keys() - with_fold_epochs:
                changed_stages[name] = _with_same_epochs_on_folds(changed_stages[name])
        if not changed_stages:
            known = sorted({field for name in names for field in _fields(recipe.stages[name], name)})
            raise CohortError(f"--set {word}: {stage} has no field {path!r}, expected {_near(path, known)}")
        recipe = dataclasses.replace(recipe, stages=recipe.stages | changed_stages)
        changed |= set(changed_stages)
    for name in sorted(changed):
        _try(name, recipe.stages[name])
    return recipe


def _stage_and_path(word: str) -> tuple[str, str]:
    stage, _, path = word.partition("=")[0].partition(".")
    return stage, path


def _with_same_epochs_on_folds(stage: StageRecipe) -> StageRecipe:
    return dataclasses.replace(stage, fit=dataclasses.replace(stage.fit, fold_epochs=0))


def _parts(stage: StageRecipe, name: str) -> dict[str, Any]:
    """The dataclasses of a stage by part, with defaults for augmentation and mixing where it may have them."""
    parts: dict[str, Any] = {"network": stage.network, "fit": stage.fit}
    optional = {"augment": stage.augment or AugmentConfig(), "mixing": stage.mixing or MixConfig()}
    return parts | {part: optional[part] for part in stage_by_name(name).options}


def _fields(stage: StageRecipe, name: str) -> list[str]:
    return [field.name for part in _parts(stage, name).values() for field in dataclasses.fields(part)]


def _with_field(stage: StageRecipe, name: str, path: str, text: str, word: str) -> StageRecipe | None:
    """The stage with a field changed; None where it has none of that name."""
    first, _, rest = path.partition(".")
    parts = _parts(stage, name)
    if first in PARTS and rest:
        parts, path = {key: value for key, value in parts.items() if key == first}, rest
    for part, config in parts.items():
        changed = _changed(config, path, text, word)
        if changed is not None:
            return dataclasses.replace(stage, **{part: changed})
    return None


def _changed(config: Any, path: str, text: str, word: str) -> Any:
    """A dataclass with the field at a path changed; None where it has no such field."""
    first, _, rest = path.partition(".")
    hints = get_type_hints(type(config))
    if first not in hints:
        return None
    value: Any
    own = getattr(config, first)
    if rest:
        if not dataclasses.is_dataclass(own):
            raise CohortError(f"--set {word}: {first} has no fields, expected {first}=VALUE")
        value = _changed(own, rest, text, word)
        if value is None:
            known = [field.name for field in dataclasses.fields(own)]
            raise CohortError(f"--set {word}: {first} has no field {rest!r}, expected {_near(rest, known)}")
    elif first == "backbone" and text == "none" and isinstance(own, str):
        value = ""  # a heatmap network's plain encoder
    elif first == "backbone":
        _check_backbone(text, word)
        value = BackboneConfig(text) if isinstance(own, BackboneConfig) else text
    elif first in FIXED and not (isinstance(config, BackboneConfig) and first == "name"):
        raise CohortError(f"--set {word}: {first} cannot be changed, other stages rely on {own!r}")
    else:
        value = _parsed(first, hints[first], text, word)
    return dataclasses.replace(config, **{first: value})


def _with_recipe_field(recipe: Recipe, path: str, text: str, word: str) -> Recipe:
    """A field that belongs to no stage; denoising and the like are on, off, or have fields."""
    first, _, rest = path.partition(".")
    if first in _SWITCHES:
        on = getattr(recipe, first) or _SWITCHES[first]()
        if not rest:
            switched: dict[str, Any] = {first: on if _parsed(path, bool, text, word) else None}
            return dataclasses.replace(recipe, **switched)
        fields: dict[str, Any] = {first: on}
        recipe = dataclasses.replace(recipe, **fields)
    known = [field.name for field in dataclasses.fields(Recipe) if field.name not in ("name", "stages")]
    changed = _changed(recipe, path, text, word) if path.partition(".")[0] in known else None
    if changed is None:
        raise CohortError(f"--set {word}: a recipe has no field {path!r}, expected {_near(path, known)}")
    if recipe.n_folds != changed.n_folds and changed.n_folds < 2:
        raise CohortError(f"--set {word}: found {text}, expected 2 folds or more")
    return changed  # type: ignore[no-any-return]


def _parsed(name: str, hint: Any, text: str, word: str) -> Any:
    """A value of a field's type, within what the field can be."""
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        parts = [part for part in text.strip("()[] ").split(",") if part.strip()]
        if kinds[-1] is not Ellipsis and len(parts) != len(kinds):
            raise CohortError(f"--set {word}: found {len(parts)} numbers, expected {len(kinds)} with commas between")
        values = tuple(_parsed(name, kinds[0], part.strip(), word) for part in parts)
        if name == "conditions" and (not values or len(set(values)) < len(values) or max(values) > 4):
            raise CohortError(f"--set {word}: found {text}, expected numbers of conditions, 0 to 4, each once")
        if name in _PAIRS and values[0] > values[1]:
            raise CohortError(f"--set {word}: found {text}, expected the smaller number first")
        return values
    if hint is bool:
        lower = text.strip().lower()
        if lower not in ("true", "false", "1", "0", "on", "off", "yes", "no"):
            raise CohortError(f"--set {word}: found {text!r}, expected true or false")
        return lower in ("true", "1", "on", "yes")
    if hint is str:
        if name in _CHOICES and text not in _CHOICES[name]:
            raise CohortError(f"--set {word}: found {text!r}, expected {' or '.join(_CHOICES[name])}")
        return text
    try:
        value = hint(text)
    except ValueError:
        kind = "a whole number" if hint is int else "a number"
        raise CohortError(f"--set {word}: found {text!r}, expected {kind}") from None
    _check_range(name, value, word)
    return value


def _check_range(name: str, value: float, word: str) -> None:
    if name in _SHARES:
        is_good, wanted = 0 <= value <= 1, "0 to 1"
    elif name == "zoom":  # a crop drawn in by all of its side shows nothing
        is_good, wanted = 0 <= value < 1, "0 or more and less than 1"
    elif name == "parts":
        is_good, wanted = value >= 2, "2 or more"
    elif name in _FROM_ZERO or name == "conditions":
        is_good, wanted = value >= 0, "0 or more"
    else:
        is_good, wanted = value > 0, "more than 0"
    if not (is_good and math.isfinite(value)):
        raise CohortError(f"--set {word}: found {value:g}, expected {wanted}")


def _check_backbone(name: str, word: str) -> None:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3) or ["a name of timm.list_models()"]
        raise CohortError(f"--set {word}: timm {timm.__version__} knows no {name!r}, expected {' or '.join(near)}")


def _try(name: str, stage: StageRecipe) -> None:
    """Build a changed network without memory for its weights."""
    try:
        with torch.device("meta"):
            build(name_of(stage.network), to_dict(stage.network))
    except (LumbarError, RuntimeError, ValueError, TypeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CohortError(f"--set: the network of {name} cannot be built ({reason})") from None


def _near(name: str, known: list[str]) -> str:
    """The nearest known name as a suggestion, else all of them."""
    close = difflib.get_close_matches(name.rpartition(".")[2], known, 1, 0.6)
    return f"{close[0]!r}" if close else f"one of {', '.join(dict.fromkeys(known))}"
