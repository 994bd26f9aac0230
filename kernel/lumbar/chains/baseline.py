"""The baseline chain of one study: 8-bit slices → one network for each column → the mean over slices. No localiser."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lumbar.bundle.manifest import Manifest
from lumbar.bundle.probes import check_probe
from lumbar.bundle.weights import load_network
from lumbar.chains.contract import Picture, StudyResult
from lumbar.errors import ManifestError
from lumbar.labels import COLUMNS, DESCRIPTIONS
from lumbar.models.baseline import BaselineNet
from lumbar.models.inference import forward
from lumbar.stages.eight_bit import as_input, choose_slices, eight_bit
from lumbar.stages.points import Localisation
from lumbar.study import Study, read_study
from lumbar.workers.effort import Effort, Level

STAGE = "baseline"
_BATCH = 64  # slices that go through a network at once: memory stays small on a CPU too
_PICTURED = 5  # slices of each description in the report

View = tuple[str, int, int]  # description, size, slices


@dataclass
class BaselineNetworks:
    """The networks of each label column: one full fit, or several folds whose outputs are averaged."""

    by_column: dict[str, list[BaselineNet]] = field(default_factory=dict)


def load(manifest: Manifest, device: str) -> BaselineNetworks:
    """Load the networks one by one, each checked by its probe, so that only one file is in memory beside them.

    Raises:
        ManifestError: an entry that is no baseline network, tensors that do not fit, or a probe that differs.
    """
    networks = BaselineNetworks()
    for entry in manifest.of_stage(STAGE):
        network = load_network(manifest.path(entry), entry, device)
        if not isinstance(network, BaselineNet):
            raise ManifestError(f"{entry.file}: found model {entry.model!r} in stage {STAGE!r}, expected 'baseline'")
        check_probe(network, entry.probe, entry.file)
        networks.by_column.setdefault(network.config.column, []).append(network)
    return networks


def read(
    wanted: Sequence[str], root: Path, split: str, study_id: int | str, descriptions: pd.DataFrame, workers: int | None
) -> Study:
    """Read only the series whose description is among ``wanted``; the others cost no time and give no problems."""
    table = descriptions[descriptions["series_description"].isin(list(wanted))]
    study = read_study(root, split, study_id, table, workers)
    expected = {f"study {study_id}: no {name} series" for name in DESCRIPTIONS if name not in wanted}
    study.problems = [line for line in study.problems if line not in expected]
    return study


def predict(
    study: Study, networks: BaselineNetworks, prior: NDArray[np.float64], effort: Level = Effort.FULL
) -> StudyResult:
    """Predict one study: probabilities (25, 3); a column without network or image keeps exactly its prior.

    Args:
        study: its stacks.
        networks: of one bundle.
        prior: (25, 3), rows sum to 1.
        effort: what to leave out when time is short.
    """
    result = StudyResult(probs=np.array(prior, dtype=np.float64), localisation=Localisation())
    images: dict[View, NDArray[np.uint8]] = {}
    seconds = {"convert": 0.0, "classify": 0.0}
    for index, column in enumerate(COLUMNS):
        folds = networks.by_column.get(column, [])
        total = np.zeros(3)
        for network in folds if effort.uses_all_folds else folds[:1]:
            view = view_of(network)
            started = time.perf_counter()
            if view not in images:
                images[view] = _images(study, view, None if effort.uses_all_models else 1)
                if not len(images[view]):
                    result.problems.append(f"study {study.study_id}: no {view[0]} slice, its columns keep their prior")
            seconds["convert"] += time.perf_counter() - started
            if not len(images[view]):
                continue
            started = time.perf_counter()
            config = network.config
            logits = slice_logits(network, images[view])
            total += combine(logits, prior[index], config.balance, config.temperature)
            seconds["classify"] += time.perf_counter() - started
        if total.sum() > 0:
            result.probs[index] = total / total.sum()
    result.seconds = seconds
    return result


def view_of(network: BaselineNet) -> View:
    """The slices that a network takes: networks with the same view share the converted slices."""
    return network.config.description, network.config.size, network.config.slices


def _images(study: Study, view: View, limit: int | None) -> NDArray[np.uint8]:
    description, size, n_slices = view
    chosen = choose_slices(study, description, n_slices)
    if limit is not None and len(chosen) > limit:  # little time left: only the slices in the middle
        middle = (len(chosen) - limit) // 2
        chosen = chosen[middle : middle + limit]
    return np.array([eight_bit(study, chosen_slice, size) for chosen_slice in chosen], dtype=np.uint8)


def slice_logits(network: BaselineNet, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Logits (N, 3) of 8-bit slices (N, size, size)."""
    parts = [
        forward(network, as_input(images[start : start + _BATCH])).double().numpy()
        for start in range(0, len(images), _BATCH)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, 3))


def slice_probs(
    logits: NDArray[np.float64], prior: NDArray[np.float64], balance: Sequence[float], temperature: float = 1.0
) -> NDArray[np.float64]:
    """Probabilities (N, 3) under the true class frequencies, from logits (N, 3) of a network fitted on balanced ones.

    A network that was fitted on upsampled classes estimates p(class | slice) under those frequencies. Bayes' rule
    brings the true ones back: its estimate times ``prior`` over ``balance``.

    Args:
        logits: of one or more slices.
        prior: (3,), the class frequencies weighted 1/2/4 as the metric does.
        balance: (3,), the share of each class among the slices that the network was fitted on; a class with 0 keeps
            its prior.
        temperature: divides the logits first. At 1 the network is believed; far above 1 only the prior is left (Guo
            et al. 2017, On calibration of modern neural networks).
    """
    shares = np.asarray(balance, dtype=np.float64)
    is_known = shares > 0
    shifted = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
    odds = np.where(is_known, shifted * prior / np.where(is_known, shares, 1.0), 0.0)
    total = odds.sum(axis=1, keepdims=True)
    known = np.divide(odds, total, out=np.zeros_like(odds), where=total > 0)
    return np.asarray(np.where(is_known, known * prior[is_known].sum(), prior) / prior.sum())


def combine(
    logits: NDArray[np.float64], prior: NDArray[np.float64], balance: Sequence[float], temperature: float = 1.0
) -> NDArray[np.float64]:
    """Probabilities (3,) of a study: the mean of ``slice_probs`` over its slices, of which there is at least one."""
    return np.asarray(slice_probs(logits, prior, balance, temperature).mean(axis=0))


def draw(study: Study, _result: StudyResult) -> list[Picture]:
    """Draw the central slices as the networks see them, at 256 pixels."""
    pictures = []
    for description in DESCRIPTIONS:
        for chosen_slice in choose_slices(study, description, _PICTURED)[:_PICTURED]:
            is_whole, png = cv2.imencode(".png", eight_bit(study, chosen_slice, 256))
            if is_whole:
                title = f"{description}, series {chosen_slice.series_id}, slice {chosen_slice.name}"
                pictures.append(Picture(title, png.tobytes()))
    return pictures
