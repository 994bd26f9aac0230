"""Chains by name. A chain's module, and with it torch and numba, is imported when one of its functions is called."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

from lumbar.bundle.manifest import FILE_NAME, Manifest
from lumbar.chains.contract import Chain
from lumbar.errors import ManifestError
from lumbar.labels import SAGITTAL_T1

# Each module has ``read``, ``load``, ``predict`` and ``draw``.
MODULES = {"main": "lumbar.chains.main", "baseline": "lumbar.chains.baseline"}


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
    )


MAIN = _chain("main")


def baseline_chain(manifest: Manifest) -> Chain:
    """The baseline chain, which reads only the series that the manifest's networks take."""
    wanted = sorted({str(entry.config.get("description", SAGITTAL_T1)) for entry in manifest.of_stage("baseline")})
    return _chain("baseline", tuple(wanted))


def chain_of(chain: str | Chain, manifest: Manifest) -> Chain:
    """Return a chain by its name; a ``Chain`` is returned as it is.

    Raises:
        ManifestError: the bundle holds no weights for it, or there is no such chain.
    """
    if isinstance(chain, Chain):
        return chain
    if chain == "main":
        return MAIN
    if chain == "baseline" and manifest.of_stage("baseline"):
        return baseline_chain(manifest)
    stages = sorted({entry.stage for entry in manifest.weights})
    raise ManifestError(f"{manifest.folder / FILE_NAME}: chain {chain!r} has no weights here, found stages {stages}")
