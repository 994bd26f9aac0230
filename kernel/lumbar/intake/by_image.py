"""The contrast of series that headers leave open, from a few of their slices, by a small network of the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lumbar.bundle.manifest import Manifest
from lumbar.dicom.series import read_series_files
from lumbar.errors import LumbarError
from lumbar.intake import words
from lumbar.intake.index import Index
from lumbar.intake.kinds import UNDECIDED, Decision, compare
from lumbar.io.text import counted
from lumbar.labels import AXIAL_T2, SAGITTAL_T1, SAGITTAL_T2

STAGE = "series_contrast"
SURE = 0.8  # below this probability a series stays undecided
_CLEAR = 0.97  # from here on there is no doubt beyond that headers say nothing


def decide_by_images(index: Index, manifest: Manifest) -> None:
    """Decide the open series of an index by their images; a bundle without the network leaves them open, with a line.

    Raises:
        ManifestError: the network's file or probe does not fit this code.
    """
    studies = [study for study in index.usable() if any(one.kind == UNDECIDED for one in study.decisions)]
    n_open = sum(one.kind == UNDECIDED for study in studies for one in study.decisions)
    if not n_open:
        return
    if not manifest.of_stage(STAGE):
        index.problems.append(
            f"headers alone decide: the bundle has no {STAGE} network, so {counted(n_open, 'series')} stay undecided"
        )
        return
    networks = _load(manifest)
    for study in studies:
        for decision, series_id in zip(study.decisions, study.series_ids, strict=True):
            if decision.kind == UNDECIDED:
                _decide(decision, str(series_id), networks)
        compare(study.decisions)


def _load(manifest: Manifest) -> list[Any]:
    """The fits of the network, each proven by its probe."""
    from lumbar.bundle.probes import check_probe  # late: torch is needed only where headers leave something open
    from lumbar.bundle.weights import load_network

    networks = []
    for entry in manifest.of_stage(STAGE):
        network = load_network(manifest.path(entry), entry)
        check_probe(network, entry.probe, entry.file)
        networks.append(network)
    return networks


def _decide(decision: Decision, series_id: str, networks: Sequence[Any]) -> None:
    from lumbar.stages.series_contrast import CONTRASTS, contrast_probs, middle_indices
    from lumbar.study import Study

    part = decision.part
    plane = part.plane or next(iter(words.planes(part.text)), "sagittal")
    chosen = middle_indices(len(part.files), networks[0].config.slices)
    try:
        series = read_series_files(series_id, [part.files[k] for k in chosen], fallback_orientation=plane)
    except LumbarError as error:
        decision.doubt = f"its images cannot be read ({type(error).__name__})"
        return
    study = Study(0, {SAGITTAL_T2: series.stacks})
    probs = contrast_probs(study, series.stacks, networks)
    best = int(probs.argmax())
    seen = f"its images show {CONTRASTS[best]} (probability {probs[best]:.2f})"
    if probs[best] < SURE:
        decision.doubt = f"{seen}, expected {SURE:g} or more"
        return
    is_t1 = best == 0
    if plane == "axial" and is_t1:
        decision.leave_out("axial T1", f"{decision.reason}; {seen}: no kind that is graded")
        return
    decision.kind = AXIAL_T2 if plane == "axial" else SAGITTAL_T1 if is_t1 else SAGITTAL_T2
    decision.contrast = CONTRASTS[best]
    decision.reason = f"{decision.reason}; {seen}"
    decision.doubt = "; ".join(
        filter(None, (decision.doubt, "" if probs[best] >= _CLEAR else "the images are not clear"))
    )
