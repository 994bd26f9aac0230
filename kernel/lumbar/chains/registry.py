"""Chains by name, and those of other competitions.

A chain's module, and with it torch and numba, is imported when one of its functions is called.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import replace
from functools import partial
from typing import Any

from lumbar.bundle.manifest import FILE_NAME, Manifest
from lumbar.bundle.member_seconds import spared_members as members_to_spare
from lumbar.chains.contract import Chain, Picture, draw_nothing
from lumbar.competitions.registry import DEFAULT
from lumbar.errors import ManifestError
from lumbar.io.arguments import did_you_mean
from lumbar.io.text import one_line
from lumbar.labels import SAGITTAL_T1
from lumbar.workers.effort import UNKNOWN_TIMES, Spared

# Each module has ``read``, ``load``, ``predict`` and ``draw``.
MODULES = {"main": "lumbar.chains.main", "baseline": "lumbar.chains.baseline"}

_NEEDED = ("read", "load", "predict")  # of another competition's chain; ``draw`` may be missing


def modules_of(chain: str, manifest: Manifest) -> tuple[str, ...]:
    """What a worker of a chain imports first, in an order in which each step is short; none for other competitions."""
    if manifest.competition_name != DEFAULT or chain not in MODULES:
        return ()
    return ("numba", "cv2", "torch", "timm", MODULES[chain])


def spared_members(chain: str | Chain, manifest: Manifest) -> tuple[list[Spared], tuple[float, ...]]:
    """What the main chain leaves out near the deadline (``bundle.member_seconds``); other chains have no members."""
    is_main = chain == "main" and manifest.competition_name == DEFAULT
    return members_to_spare(manifest.data) if is_main else ([], UNKNOWN_TIMES)


def _call(module: str, name: str, *arguments: Any) -> Any:
    return getattr(importlib.import_module(module), name)(*arguments)


def _chain(name: str, *first_of_read: Any) -> Chain:
    module = MODULES[name]
    return Chain(
        read=partial(_call, module, "read", *first_of_read),
        load=partial(_call, module, "load"),
        predict=partial(_call, module, "predict"),
        draw=partial(_call, module, "draw"),
        uses_gpu=True,
        draw_files=partial(_call, module, "draw_files") if name == "main" else None,
        gpu_studies=2,
    )


MAIN = _chain("main")


def baseline_chain(manifest: Manifest) -> Chain:
    """The baseline chain, which reads only the series that the manifest's networks take."""
    wanted = sorted({str(entry.config.get("description", SAGITTAL_T1)) for entry in manifest.of_stage("baseline")})
    return _chain("baseline", tuple(wanted))


def own_chain(name: str) -> Chain:
    """The chain of another competition: ``read``, ``load``, ``predict`` and, where there is one, ``draw``.

    They stand in ``lumbar.chains.NAME``, which workers alone import, or in the competition's own module.
    """
    place = f"lumbar.chains.{name}"
    module = place if importlib.util.find_spec(place) is not None else f"lumbar.competitions.{name}"
    return Chain(
        read=partial(_call, module, "read"),
        load=partial(_load, module),
        predict=partial(_call, module, "predict"),
        draw=partial(_draw, module),
        uses_gpu=True,
    )


def _load(module: str, manifest: Manifest, device: str) -> Any:
    """The networks, once the module has what a chain needs: else every study would fail instead of the run."""
    try:
        functions = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever somebody's module does while it is imported
        reason = one_line(error)
        raise ManifestError(f"{module}: cannot be imported ({reason}), expected {', '.join(_NEEDED)}") from None
    if missing := [name for name in _NEEDED if not callable(getattr(functions, name, None))]:
        raise ManifestError(f"{module}: found no function {missing[0]}, expected {', '.join(_NEEDED)}")
    return functions.load(manifest, device)


def _draw(module: str, study: Any, result: Any) -> list[Picture]:
    draw = getattr(importlib.import_module(module), "draw", draw_nothing)
    return list(draw(study, result))


def chain_of(chain: str | Chain, manifest: Manifest) -> Chain:
    """Return a chain by its name; a ``Chain`` is returned as it is.

    Raises:
        ManifestError: the bundle holds no weights for it, or there is no such chain.
    """
    if isinstance(chain, Chain):
        return chain
    if manifest.competition_name != DEFAULT:
        if chain != "main":
            where = manifest.folder / FILE_NAME
            raise ManifestError(f"{where}: chain {chain!r}, expected main, the chain of {manifest.competition_name}")
        return own_chain(manifest.competition_name)
    if chain == "main":
        # Code of external members may set what all threads share, and nobody says that it may run in two at once
        is_ours = all(one.external is None for one in manifest.classifiers)
        return MAIN if is_ours else replace(MAIN, gpu_studies=1)
    if chain == "baseline" and manifest.of_stage("baseline"):
        return baseline_chain(manifest)
    if chain not in MODULES:
        raise ManifestError(f"chain {chain!r}: expected one of {', '.join(MODULES)}{did_you_mean(chain, MODULES)}")
    stages = sorted({entry.stage for entry in manifest.weights})
    raise ManifestError(f"{manifest.folder / FILE_NAME}: chain {chain!r} has no weights here, found stages {stages}")
