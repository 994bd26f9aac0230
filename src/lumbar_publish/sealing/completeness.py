"""Checks before sealing: a run is complete, and its parts belong together."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from lumbar.bundle.own_localisers import own_stages
from lumbar.competitions.lumbar_spine import NAME as DEFAULT
from lumbar.config import CLASSIFIERS, FUSION, OPTIONAL_STAGES, STAGES
from lumbar.errors import ManifestError
from lumbar.io.arguments import python_word
from lumbar.io.text import printable
from lumbar.stages.classifiers import EXTERNAL

BASELINE = "baseline"  # a run of the baseline chain has this one stage instead of the seven


def chain_of(data: dict[str, Any]) -> str:
    """Which chain a manifest's weights serve: ``main``, or ``baseline`` when they hold nothing else.

    Another competition's own chain is its ``main`` one.
    """
    if _is_another(data):
        return "main"
    return BASELINE if {entry.get("stage") for entry in data.get("weights") or []} == {BASELINE} else "main"


def _is_another(data: dict[str, Any]) -> bool:
    return bool(data.get("competition", DEFAULT) != DEFAULT)


def completeness_errors(data: dict[str, Any], run: Path | None = None) -> list[str]:
    """Reasons not to seal: stages missing or unknown, recipes or configurations mixed. Empty when there is none.

    Args:
        data: a manifest.
        run: the run's folder, whose ``recipe.json`` must name the manifest's recipe.

    Raises:
        ManifestError: a ``recipe.json`` that is no JSON.
    """
    entries = data.get("weights") or []
    present = {str(entry.get("stage")) for entry in entries}
    if _is_another(data):  # its module's ``load`` says which stages it needs
        missing_weights = [] if entries else ["no weights, expected those that the competition's module loads"]
        return missing_weights + _recipes(data, entries, run) + _mixed_configs(entries)
    stages = _stages(data)
    wanted = {BASELINE} if chain_of(data) == BASELINE else set(stages)
    reasons = []
    missing = [stage for stage in stages if stage in wanted - present]
    if missing or not entries:
        reasons.append(f"no weights for {', '.join(missing or stages)}; found {', '.join(sorted(present)) or 'none'}")
    unknown = sorted(present - set(stages) - set(OPTIONAL_STAGES) - {BASELINE})
    if unknown:
        reasons.append(f"unknown stages {', '.join(unknown)}")
    reasons += _recipes(data, entries, run)
    reasons += _mixed_configs(entries)
    return reasons


def _stages(data: dict[str, Any]) -> list[str]:
    """The stages of the main chain: the classifiers are those that the manifest lists, or the usual three."""
    names = [str(entry["name"]) for entry in data.get("classifiers", ())] or CLASSIFIERS
    names = [*names, FUSION] if FUSION in data else names
    first = STAGES.index(CLASSIFIERS[0])
    return [
        *STAGES[:first],
        *own_stages(data),
        *names,
        *(stage for stage in STAGES[first:] if stage not in CLASSIFIERS),
    ]


def _recipes(data: dict[str, Any], entries: list[dict[str, Any]], run: Path | None) -> list[str]:
    recipe = data.get("recipe")
    others = {f"{entry['file']} is of {entry['recipe']}" for entry in entries if entry.get("recipe", recipe) != recipe}
    path = run / "recipe.json" if run else None
    if path and path.is_file():
        try:
            named = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError, RecursionError) as error:
            raise ManifestError(f"{path}: not readable as JSON: {error}") from None
        name = named.get("name") if isinstance(named, dict) else named
        if name is not None and name != recipe:
            others.add(f"{path.name} says {name}")
    return [f"recipes are mixed: the manifest says {recipe}, {', '.join(sorted(others))}"] if others else []


def _mixed_configs(entries: list[dict[str, Any]]) -> list[str]:
    """Folds of one stage must be the same network, or they cannot be averaged (a baseline fits one per column)."""
    reasons = []
    first: dict[str, dict[str, Any]] = {}
    for entry in entries:
        stage = str(entry.get("stage"))
        if stage == BASELINE or entry.get("model") == EXTERNAL:  # whose files are parts of one model
            continue
        other = first.setdefault(stage, entry)
        for key in ("model", "config"):
            if entry.get(key) != other.get(key):
                what = _difference(entry.get(key), other.get(key))
                reasons.append(f"{stage}: {entry.get('file')} and {other.get('file')} differ in {key}{what}")
    return reasons


def _difference(a: Any, b: Any) -> str:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
        return f" ({', '.join(f'{key}: {a.get(key)} and {b.get(key)}' for key in keys)})"
    return f" ({a} and {b})"


def how_to_finish(run: Path) -> str:
    """Put behind a refusal of a run without weights to seal: the command that goes on with it; or empty.

    The run's ``session.json`` has it; of a run of before that file had, its ``recipe.json`` tells most.
    """
    session, recipe = _object(run / "session.json"), _object(run / "recipe.json")
    try:
        words = shlex.split(str(session.get("command", "")))
        words[words.index("--out") + 1] = str(run)  # a run may have been moved
        data = words.index("--data") + 1
        words[data] = words[data] if Path(words[data]).is_dir() else "ROOT"  # or come home from another machine
    except (ValueError, IndexError):
        is_baseline = "columns" in recipe  # which has no recipe to choose
        words = ["baseline"] if is_baseline else ["train", "--recipe", str(recipe.get("name", "NAME"))]
        words = [python_word(), "-m", "lumbar_train", *words, "--data", "ROOT", "--out", str(run), "--resume"]
    if not session and not recipe:
        return ""
    return f"; this one is not finished, go on with: {printable(shlex.join(words), 1000)}"


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
