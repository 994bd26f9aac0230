"""Times each member of a bundle on one study; run as a program that sees nothing of ours but the sealed code.

    python measure_members.py BUNDLE COMPETITION_FOLDER OUT

``OUT`` gets, as JSON, the seconds and counted operations of each member (one set of weights, one view, five levels) and
of each localisation, and the seconds in which the crops of all members are cut.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from lumbar.bundle.manifest import Manifest, read_manifest
from lumbar.bundle.own_localisers import own_sets
from lumbar.bundle.weights import load_networks
from lumbar.errors import LumbarError
from lumbar.models.inference import Networks
from lumbar.stages.classifiers import crop_of, view_of
from lumbar.stages.classify import LevelTensors, all_levels, classify, run_levels, series_to_classify
from lumbar.stages.localise import localise
from lumbar.stages.points import Localisation
from lumbar.study import Study, read_study
from lumbar.workers.run_inputs import read_table

_LONG_S = 2.0  # what takes so long is timed once; anything else three times, of which the fastest counts
_REPEATS = 3


def measure(folder: Path, root: Path) -> dict[str, Any]:
    """What each member and the rest of a study take here.

    Args:
        folder: the bundle.
        root: a competition folder whose test split has a study; the first one is looked at.

    Raises:
        LumbarError: a bundle or a study that cannot be read.
    """
    manifest = read_manifest(folder)
    networks = load_networks(folder, manifest)
    study = _first_study(manifest, root)
    place, localised = _localised(study, networks)
    crops: dict[Any, list[LevelTensors]] = {}
    cut_s = 0.0
    members = {}
    for name in (one.name for one in manifest.classifiers):  # a fusion beside them reads what they leave
        fits = networks.stage(name)
        if not fits:  # an external member, whose code cuts and computes in one
            members[name] = {"seconds": _external_seconds(study, place, networks, name), "flops": 0}
            continue
        network: Any = fits[0]
        key = view_of(network.config), crop_of(network.config)
        if key not in crops:
            _cut(study, place, network)  # fills caches
            started = time.perf_counter()
            crops[key] = _cut(study, place, network)
            cut_s += time.perf_counter() - started
        members[name] = _timed(network, crops[key])
    return {
        "members": members,
        "localise": localised,
        "localisers": {
            own.name: _localised(study, localisers)[1]
            for own, (_, localisers) in zip(own_sets(manifest.data), networks.own, strict=True)
        },
        "cut_seconds": cut_s,
    }


def _localised(study: Study, networks: Networks) -> tuple[Localisation, dict[str, float]]:
    """The points of a study, and seconds and counted operations of finding them with one fold and one view."""
    localise(study, networks, all_folds=False, augment=False)  # compiles what has to be compiled
    with FlopCounterMode(display=False) as counted:
        started = time.perf_counter()
        place = localise(study, networks, all_folds=False, augment=False)
        seconds = time.perf_counter() - started
    return place, {"seconds": seconds, "flops": counted.get_total_flops()}


def _first_study(manifest: Manifest, root: Path) -> Study:
    frame = read_table(root, "test", manifest)[0].frame
    study_id = sorted(frame["study_id"].tolist())[0]
    return read_study(root, "test", study_id, frame)


def _cut(study: Study, place: Localisation, network: Any) -> list[LevelTensors]:
    looks = [all_levels(study, place, network, look) for look in series_to_classify(place, network)]
    return [tensors for tensors in looks if tensors.mask.any()]


def _timed(network: Any, crops: list[LevelTensors]) -> dict[str, float]:
    """Seconds and counted operations of one forward pass over all looks; the count is the warm-up."""
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        for tensors in crops:
            network(*tensors.inputs(network))
    best = float("inf")
    for _ in range(_REPEATS):
        started = time.perf_counter()
        for tensors in crops:
            run_levels(network, tensors, flip=False)
        best = min(best, time.perf_counter() - started)
        if best > _LONG_S:
            break
    return {"seconds": best if crops else 0.0, "flops": counted.get_total_flops()}


def _external_seconds(study: Study, place: Localisation, networks: Networks, name: str) -> float:
    classify(study, place, networks, names=(name,), flip=False, all_folds=False)
    started = time.perf_counter()
    classify(study, place, networks, names=(name,), flip=False, all_folds=False)
    return time.perf_counter() - started


if __name__ == "__main__":
    try:
        told = measure(Path(sys.argv[1]), Path(sys.argv[2]))
    except LumbarError as error:
        sys.exit(f"error: {error}")
    Path(sys.argv[3]).write_text(json.dumps(told), encoding="utf-8")
