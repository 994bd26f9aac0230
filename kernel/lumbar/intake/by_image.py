"""The contrast of series that headers leave open, from a few of their slices, by a small network of the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lumbar.bundle.manifest import Manifest
from lumbar.dicom.series import read_series_files
from lumbar.errors import LumbarError
from lumbar.intake import words
from lumbar.intake.index import Index
from lumbar.intake.kinds import UNDECIDED, Decision, compare
from lumbar.intake.weighting import EITHER, STIR, T1, T2
from lumbar.io.text import counted
from lumbar.labels import AXIAL_T2, SAGITTAL_T1, SAGITTAL_T2

STAGE = "series_contrast"
SURE = 0.8  # below this probability a series stays undecided
_KINDS = {("sagittal", T1): SAGITTAL_T1, ("axial", T2): AXIAL_T2, ("axial", EITHER): AXIAL_T2}
_KINDS |= {("sagittal", name): SAGITTAL_T2 for name in (T2, STIR, EITHER)}
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
    probs = dict(zip(CONTRASTS, contrast_probs(study, series.stacks, networks).tolist(), strict=True))
    contrast, prob = _named(probs)
    seen = f"its images show {contrast} (probability {prob:.2f})"
    if prob < SURE:
        decision.doubt = f"{seen}, expected {SURE:g} or more"
        return
    if (plane, contrast) not in _KINDS:
        decision.leave_out(f"{plane} {contrast}", f"{decision.reason}; {seen}: no kind that is graded")
        return
    decision.kind = _KINDS[plane, contrast]
    decision.contrast = contrast
    decision.reason = f"{decision.reason}; {seen}"
    decision.doubt = "; ".join(filter(None, (decision.doubt, "" if prob >= _CLEAR else "the images are not clear")))


def _named(probs: Mapping[str, float]) -> tuple[str, float]:
    """The likeliest contrast and its probability; T2 or STIR by one name where only both together are sure."""
    best = max(probs, key=lambda name: probs[name])
    both = probs[T2] + probs[STIR]
    return (EITHER, both) if probs[best] < SURE <= both else (best, probs[best])
