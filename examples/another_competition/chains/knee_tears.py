"""One network a study: middle slices → logits of the two tears. Workers alone import this module."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from lumbar.competitions.knee_tears import FINDINGS
from numpy.typing import NDArray
from torch import Tensor, nn

from lumbar.bundle.manifest import Manifest
from lumbar.bundle.probes import check_probe
from lumbar.bundle.weights import load_into
from lumbar.chains.contract import Picture, Probs, StudyResult
from lumbar.dicom import read_series
from lumbar.errors import ManifestError
from lumbar.models.examples import Examples
from lumbar.models.inference import forward
from lumbar.study import Study
from lumbar.workers.budget import Effort

STAGE = "tears"
SIZE, SLICES = 64, 3  # what the network sees: so many middle slices, each so many pixels a side


def read(root: Path, split: str, study_id: int, table: pd.DataFrame, workers: int | None) -> Study:
    """A study's only series: ``{split}/<study_id>/*.dcm``."""
    series = read_series(root / split / str(study_id), workers)
    return Study(study_id, {"knee": list(series.stacks)}, list(series.problems))


def middle_slices(study: Study) -> NDArray[np.float32]:
    """What the network sees: (slices, 1, SIZE, SIZE) in 0..1. Training calls this too."""
    stack = max(study.series["knee"], key=lambda stack: len(stack.volume))
    first = max(0, (len(stack.volume) - SLICES) // 2)
    images = [study.normalised(stack, index) for index in range(first, min(first + SLICES, len(stack.volume)))]
    resized = [cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for image in images]
    return np.array(resized, dtype=np.float32)[:, None]


class TearNet(nn.Module):
    """Slices (N, 1, SIZE, SIZE) → logits (N, 2) of the findings."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear((SIZE // 8) ** 2, len(FINDINGS)))

    def example_inputs(self, examples: Examples) -> tuple[Tensor, ...]:
        """Two images: the answer to them is recorded at export, and compared before use."""
        return (examples.images(2, SIZE)[:, None],)

    def forward(self, slices: Tensor) -> Tensor:
        """(N, 1, SIZE, SIZE) → (N, 2)."""
        return self.layers(slices)  # type: ignore[no-any-return]


def load(manifest: Manifest, device: str) -> list[nn.Module]:
    """Every fit of the bundle, proven by its probe."""
    networks = []
    for entry in manifest.of_stage(STAGE):
        network = load_into(TearNet(), manifest.path(entry), device)
        check_probe(network, entry.probe, entry.file)
        networks.append(network)
    if not networks:
        raise ManifestError(f"{manifest.folder}: found no weights of stage {STAGE}, expected one fit or more")
    return networks


def predict(study: Study, networks: list[nn.Module], prior: Probs, effort: Effort) -> StudyResult:
    """The mean over fits and slices: (1, 2), the competition's rows and values."""
    started = time.perf_counter()
    slices = torch.from_numpy(middle_slices(study))
    fits = networks if effort.uses_all_folds else networks[:1]
    logits = torch.stack([forward(network, slices) for network in fits])
    probs = logits.double().sigmoid().mean(dim=(0, 1)).numpy()[None]
    return StudyResult(probs, seconds={"classify": time.perf_counter() - started})


def draw(study: Study, result: StudyResult) -> list[Picture]:
    """The middle slice, for the report."""
    images = middle_slices(study)
    _, png = cv2.imencode(".png", (255 * images[len(images) // 2, 0]).astype(np.uint8))
    return [Picture(f"study {study.study_id}, middle slice", png.tobytes())]
