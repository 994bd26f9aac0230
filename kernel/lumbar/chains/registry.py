"""A chain: the functions that take one study from its folder to probabilities and pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lumbar.budget import Effort
from lumbar.bundle.manifest import Manifest
from lumbar.labels import SAGITTAL_T1

Probs = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn slice for the report; ``png`` is a whole PNG file."""

    title: str
    png: bytes


@dataclass
class Outcome:
    """What became of one study. ``probs`` (25, 3), or None: its prior stays."""

    study_id: int
    probs: Probs | None = None
    problems: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    sagittal_points: list[dict[str, Any]] = field(default_factory=list)
    axial_levels: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    failure: str = ""  # one line, why the prior stays
    is_device_lost: bool = False  # the device answers no more: the worker must be replaced

    @property
    def status(self) -> str:
        """``predicted`` or ``prior``, as the run record says."""
        return "prior" if self.probs is None else "predicted"


@dataclass(frozen=True)
class Chain:
    """The functions of a chain. Each must be importable by name, so that a worker process finds it.

    ``read(root, split, study_id, descriptions, workers)`` gives a study; ``load(manifest, device)`` networks that
    passed their probes; ``predict(study, networks, prior, effort)`` a result with ``probs``, ``localisation``,
    ``problems`` and ``seconds``; ``draw(study, result)`` pictures.
    """

    read: Callable[[Path, str, int, pd.DataFrame, int | None], Any]
    load: Callable[[Manifest, str], Any]
    predict: Callable[[Any, Any, Probs, Effort], Any]
    draw: Callable[[Any, Any], list[Picture]]


def draw_nothing(_study: Any, _result: Any) -> list[Picture]:
    """No pictures."""
    return []


def read_study(root: Path, split: str, study_id: int, descriptions: pd.DataFrame, workers: int | None) -> Any:
    """``lumbar.study.read_study``; numba and pydicom are imported only now."""
    from lumbar import study

    return study.read_study(root, split, study_id, descriptions, workers)


def load_main(manifest: Manifest, device: str) -> Any:
    """The main chain's networks on a device, each proven by its probe. torch is imported only now.

    Raises:
        ManifestError: code, library versions, configs or weights do not belong together.
    """
    from lumbar.bundle.weights import check_probes, load_networks

    networks = load_networks(manifest.folder, manifest, device)
    check_probes(networks, manifest)
    return networks


def predict_main(study: Any, networks: Any, prior: Probs, effort: Effort) -> Any:
    """``lumbar.stages.predict_study``."""
    from lumbar.stages import predict_study

    return predict_study(study, networks, prior, effort)


def draw_main(study: Any, result: Any) -> list[Picture]:
    """``lumbar.chains.overlay.draw``."""
    from lumbar.chains.overlay import draw

    return draw(study, result.localisation)


MAIN = Chain(read=read_study, load=load_main, predict=predict_main, draw=draw_main)


def read_baseline(
    wanted: tuple[str, ...], root: Path, split: str, study_id: int, descriptions: pd.DataFrame, workers: int | None
) -> Any:
    """``lumbar.chains.baseline.read``: only the series of the descriptions ``wanted``."""
    from lumbar.chains import baseline

    return baseline.read(wanted, root, split, study_id, descriptions, workers)


def load_baseline(manifest: Manifest, device: str) -> Any:
    """``lumbar.chains.baseline.load``: a network a column, each proven by its probe.

    Raises:
        ManifestError: code, library versions, configs or weights do not belong together.
    """
    from lumbar.chains import baseline

    return baseline.load(manifest, device)


def predict_baseline(study: Any, networks: Any, prior: Probs, effort: Effort) -> Any:
    """``lumbar.chains.baseline.predict``."""
    from lumbar.chains import baseline

    return baseline.predict(study, networks, prior, effort)


def draw_baseline(study: Any, result: Any) -> list[Picture]:
    """``lumbar.chains.baseline.draw``."""
    from lumbar.chains import baseline

    return baseline.draw(study, result)


def baseline_chain(manifest: Manifest) -> Chain:
    """The chain without localiser; it reads only the series that the manifest's networks look at."""
    wanted = sorted({str(entry.config.get("description", SAGITTAL_T1)) for entry in manifest.of_stage("baseline")})
    return Chain(
        read=partial(read_baseline, tuple(wanted)), load=load_baseline, predict=predict_baseline, draw=draw_baseline
    )
