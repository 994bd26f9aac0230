"""One study after another in the calling process, for engines that bring their own processes (docs/ray.md)."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from lumbar.bundle.manifest import verify
from lumbar.chains.contract import Chain, Outcome
from lumbar.chains.registry import chain_of
from lumbar.io.numba_cache import use_numba_cache
from lumbar.output.outcome_json import outcome_text
from lumbar.workers.devices import cuda_devices
from lumbar.workers.run_inputs import read_table
from lumbar.workers.worker import Setup, predict_alone


class Predictor:
    """Holds the networks of a bundle, and predicts studies of one folder.

    Args:
        root: a competition folder, or any folder of DICOM, which each predictor indexes for itself.
        weights: the bundle, which is verified.
        split: ``test`` or ``train``.
        chain: as of ``lumbar.predict``.
        device: such as ``cuda:0``; None for the first GPU, or the CPU where there is none.
        n_threads: CPU threads; None leaves the choice to the libraries.
        trust_members: as of ``lumbar.predict``.

    Raises:
        LumbarError: as ``lumbar.predict`` before any work.
    """

    def __init__(
        self,
        root: str | Path,
        weights: str | Path,
        split: str = "test",
        chain: str | Chain = "main",
        device: str | None = None,
        n_threads: int | None = None,
        trust_members: bool = False,
    ) -> None:
        use_numba_cache()
        manifest = replace(verify(weights), trusts_members=trust_members)
        functions = chain_of(chain, manifest)
        competition = manifest.competition
        gpus = cuda_devices() if functions.uses_gpu and device is None else []
        self._setup = Setup(
            root=Path(root),
            split=split,
            descriptions=read_table(Path(root), split, manifest)[0].frame,
            manifest=manifest,
            prior=np.array([manifest.prior[key] for key in competition.keys]),
            chain=functions,
            device=device or (gpus[0] if gpus else "cpu"),
            n_threads=n_threads,
            first_study=None,
        )
        self._networks = functions.load(manifest, self._setup.device)
        self._idle_since = time.perf_counter()

    def predict(self, study_id: int | str) -> Outcome:
        """Read and predict one study; whatever fails becomes one line in the outcome."""
        outcome = predict_alone(self._setup, self._networks, study_id, self._idle_since)
        self._idle_since = time.perf_counter()
        return outcome

    def text(self, study_id: int | str) -> str:
        """The outcome of one study as text, for ``lumbar.run.Collector``."""
        return outcome_text(self.predict(study_id))
