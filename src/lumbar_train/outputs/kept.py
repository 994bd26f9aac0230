"""``recipe.json``: the recipe that a run folder was trained with; its networks are not read as others."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lumbar
from lumbar.config import BackboneConfig, from_dict, to_dict
from lumbar.errors import CohortError, ManifestError
from lumbar_train.files import write_text
from lumbar_train.outputs.session import SCHEMA
from lumbar_train.recipes import Recipe

FILE = "recipe.json"
FIXED = ("points", "models", "name")  # fields of networks that other stages rely on


def write_recipe(
    run: Path,
    recipe: Recipe,
    seed: int,
    words: Iterable[str] = (),
    amp: Mapping[str, str] | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write the whole recipe, and what else decides what is trained.

    Args:
        run: the run folder.
        recipe: as it is used.
        seed: of the run.
        words: that changed the recipe.
        amp: the precision that was ``asked`` for and the one that is ``used``.
        more: the ``cohort``'s fingerprint, how external ``points`` are used, and what networks begin with (``init``).
    """
    stages = {
        name: {
            "network": to_dict(stage.network),
            "fit": to_dict(stage.fit),
            "augment": stage.augment and to_dict(stage.augment),
            "mixing": stage.mixing and to_dict(stage.mixing),
        }
        for name, stage in recipe.stages.items()
    }
    content = {
        "schema": SCHEMA,
        "lumbar": lumbar.__version__,
        "name": recipe.name,
        "seed": seed,
        "set": list(words),
        "amp": amp and dict(amp),
        **(more or {}),
        "n_folds": recipe.n_folds,
        "export": recipe.export,
        "full_seeds": recipe.full_seeds,
        "denoise": recipe.denoise and to_dict(recipe.denoise),
        "pseudo": recipe.pseudo and to_dict(recipe.pseudo),
        "consistency": recipe.consistency and to_dict(recipe.consistency),
        **({"fusion": to_dict(recipe.fusion)} if recipe.fusion is not None else {}),
        "stages": stages,
    }
    write_text(run / FILE, json.dumps(content, indent=1) + "\n")


def read_recipe(run: Path) -> dict[str, Any]:
    """The content of a run's ``recipe.json``.

    Raises:
        CohortError: it is not there, or damaged.
    """
    path = run / FILE
    try:
        content = json.loads(path.read_text("utf-8"))
        if not isinstance(content["stages"], dict):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise CohortError(f"{path}: not readable, expected the recipe of this run; start in another folder") from None
    return dict(content)


def check_kept(run: Path, recipe: Recipe, anew: Iterable[str]) -> None:
    """Refuse a recipe whose networks differ from those that the run folder keeps weights of.

    Args:
        run: the run folder.
        recipe: what is to be used now.
        anew: stages whose kept weights are all replaced in this call.

    Raises:
        CohortError: a stage, the field that differs, and both values.
    """
    path = run / FILE
    if not path.is_file():
        return
    before = read_recipe(run)["stages"]
    for name in set(recipe.stages) - set(anew):
        if name in before and any((run / name).glob("*.safetensors")):
            check_same_network(path, name, before[name]["network"], recipe.stages[name].network)


def check_same_network(path: Path, name: str, before: dict[str, Any], now: Any) -> None:
    """Refuse another network of a stage.

    Args:
        path: of the recipe, for the refusal.
        name: of the stage.
        before: the network's configuration as it is noted.
        now: as it is to be used.

    Raises:
        CohortError: the field that differs, and both values.
    """
    anew = f"train that stage anew in full (--stages {name} --overwrite), or use another --out"
    try:
        was = from_dict(
            type(now), before
        )  # fields that are newer than the run have the values that it was trained with
    except ManifestError:
        raise CohortError(
            f"{path}: {name} was trained as another kind of network than the recipe's now; give the same recipe and "
            f"--set, {anew}"
        ) from None
    for field in dataclasses.fields(now):
        old, new = getattr(was, field.name), getattr(now, field.name)
        if old != new:
            shown = [
                value.name if hasattr(value, "name") and field.name == "backbone" and old.name != new.name else value
                for value in (old, new)
            ]
            word = set_word(f"{name}.{field.name}", old)
            raise CohortError(
                f"{path}: {name} was trained with {field.name} {shown[0]!r}, found {shown[1]!r}; give the same recipe "
                f"and --set{f' (here {word})' if word else ''}, {anew}"
            )


def set_word(target: str, value: Any) -> str:
    """The ``--set`` that gives a field of a stage a former value; empty where no word says it.

    Args:
        target: such as ``axial_all.size``.
        value: of the field, as a dataclass or JSON has it.
    """
    field = target.rpartition(".")[2]
    if isinstance(value, BackboneConfig) and value == BackboneConfig(value.name):
        value = value.name
    if field == "backbone" and value == "":
        value = "none"  # a heatmap network's plain encoder
    if field in FIXED or not isinstance(value, (bool, int, float, str, list, tuple)):
        return ""
    text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return "--set " + shlex.quote(f"{target}={text.lower() if isinstance(value, bool) else text}")
