"""Where members of an ensemble look that have localisers of their own."""

from __future__ import annotations

from lumbar.models.inference import Networks
from lumbar.stages.localise import localise
from lumbar.stages.points import Localisation
from lumbar.study import Study

OwnPlaces = list[tuple[tuple[str, ...], Localisation]]  # members, and the points that they look at


def own_places(study: Study, networks: Networks, *, all_folds: bool, augment: bool, skip: frozenset[str]) -> OwnPlaces:
    """Localise a study once more for each further set of localisers, unless all of its members are left out.

    Args:
        study: its stacks.
        networks: of one bundle.
        all_folds: every fold's weights, and not only the first.
        augment: test-time augmentation of the sagittal heatmaps.
        skip: classifiers that do not run.
    """
    places: OwnPlaces = []
    for members, localisers in networks.own:
        running = tuple(name for name in members if name not in skip)
        if running:
            places.append((running, localise(study, localisers, all_folds=all_folds, augment=augment)))
    return places
