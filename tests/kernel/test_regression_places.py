"""Foramina by regression networks and slice roles: with networks that know the truth, the slices are the true ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lumbar.config import BackboneConfig, SagittalRegressionConfig, SliceRoleConfig
from lumbar.labels import AXIAL_T2, LEVELS, SAGITTAL_T1, SAGITTAL_T2, SIDES
from lumbar.models.inference import Networks
from lumbar.models.regression import SagittalRegressionNet
from lumbar.models.sequence import SliceRoleNet
from lumbar.stages.heat import whole_image_mm
from lumbar.stages.localise import localise
from lumbar.study import Study
from lumbar_train.data.targets import StudyTargets, slice_counts
from stage_studies import stack_of

SIZE = 96
CANAL = {level: np.array([1.0, 2.0 * k, 66.0 - 33.0 * k]) for k, level in enumerate(LEVELS)}
ASIDE = (14.0, 14.5, 15.5, 17.0, 19.5)


class Ideal(nn.Module):
    """Gives prepared rows, slice after slice, in the order in which it is asked."""

    def __init__(self, config, rows: list[np.ndarray]) -> None:
        nn.Module.__init__(self)
        self.here = nn.Parameter(torch.zeros(1))  # tells the device
        self.config, self.rows = config, [torch.from_numpy(row.astype(np.float32)) for row in rows]


class IdealXY(Ideal, SagittalRegressionNet):
    def forward(self, images):
        rows, self.rows = self.rows[: len(images)], self.rows[len(images) :]
        return torch.stack(rows)


class IdealRoles(Ideal, SliceRoleNet):
    def forward(self, slices, mask):
        rows, self.rows = self.rows[: slices.shape[1]], self.rows[slices.shape[1] :]
        return torch.stack(rows)[None]


def truth(wide: float, centre_mm: float) -> StudyTargets:
    """A patient's points: foramina so many times as far out as most people's."""
    canal = np.array(list(CANAL.values())) + np.array([centre_mm, 0.0, 0.0])
    foramen = np.stack(
        [canal + np.array([(sign * wide * aside, -5.5, 4.0) for aside in ASIDE]) for sign in (1.0, -1.0)]
    )
    return StudyTargets(canal, foramen, [])


def localised(spacing_mm: float, target: StudyTargets, *, by_role: bool):
    n = int(64 / spacing_mm) | 1
    stacks = {}
    for seed, name in enumerate((SAGITTAL_T2, SAGITTAL_T1)):
        stack = stack_of(name, "sagittal", seed, n=n)
        scale = np.array([spacing_mm / 5.0, 1.0, 1.0])
        stacks[name] = replace(stack, origins_mm=stack.origins_mm * scale + (0.7 * seed, 0.0, 0.0))
    xy, roles = [], []
    for stack in stacks.values():
        _, rows, columns = stack.to_voxel(target.canal_mm)
        side = whole_image_mm(stack) / stack.spacing_mm[0]
        offset = (side - np.array(stack.volume.shape[1:][::-1])) / 2
        places = ((np.column_stack([columns, rows]) + 0.5 + offset) / side).reshape(-1)
        near = np.abs(stack.positions_mm[:, None] - (target.canal_mm @ stack.normal)[None]).min(axis=1)
        xy += [np.append(places, 12.0 if mm < 1.5 * spacing_mm else -12.0) for mm in near]
        roles += list(slice_counts(stack, target)[0])
    backbone = BackboneConfig("none")
    networks = Networks(
        {
            "sagittal_xy": [IdealXY(SagittalRegressionConfig(backbone, SIZE, 5, foramina_by_role=by_role), xy)],
            "sagittal_z": [IdealRoles(SliceRoleConfig(backbone, size=32, hidden=8), roles)],
        }
    )
    study = Study(study_id=1, series={name: [stack] for name, stack in stacks.items()} | {AXIAL_T2: []})
    return study, localise(study, networks)


def slices_off(study: Study, localisation, target: StudyTargets) -> np.ndarray:
    """By how many slices each T1 foraminal point lies farther out than the truth."""
    stack = study.series[SAGITTAL_T1][0]
    points = [p for p in localisation.sagittal_points if p.description == SAGITTAL_T1 and p.side]
    assert len(points) == 10
    off = []
    for point in points:
        side, level = SIDES.index(point.side), LEVELS.index(point.level)
        true = int(np.abs(stack.positions_mm - target.foramen_mm[side, level] @ stack.normal).argmin())
        off.append((point.slice_index - true) * (1 if side == 0 else -1))
    return np.array(off)


@pytest.mark.parametrize("spacing_mm", [3.0, 4.4, 5.5])
@pytest.mark.parametrize("wide", [0.85, 1.0, 1.2])
@pytest.mark.parametrize("centre_mm", [0.0, -4.0])
def test_foraminal_slices_are_the_true_ones_or_their_neighbours(spacing_mm, wide, centre_mm):
    target = truth(wide, centre_mm)
    study, localisation = localised(spacing_mm, target, by_role=True)
    off = slices_off(study, localisation, target)
    assert np.abs(off).max() <= 1
    assert (off == 0).mean() >= 0.6
    for point in localisation.sagittal_points:
        where = target.canal_mm if point.side is None else target.foramen_mm[SIDES.index(point.side)]
        gap = np.array(point.xyz_mm) - where[LEVELS.index(point.level)]
        assert np.linalg.norm(gap[1:]) < 3.5
        assert abs(gap[0]) < 1.5 * spacing_mm


def test_presence_alone_chooses_the_most_medial_slice():
    """What bundles of before do, and why the recipe leaves it to the roles."""
    target = truth(1.0, 0.0)
    study, localisation = localised(5.5, target, by_role=False)
    assert np.median(slices_off(study, localisation, target)) <= -1


def test_a_side_without_slices_keeps_the_expected_place():
    target = truth(1.0, 0.0)
    _, localisation = localised(4.4, replace(target, foramen_mm=np.full((2, 5, 3), np.nan)), by_role=True)
    points = [p for p in localisation.sagittal_points if p.side]
    assert points  # placed by anatomy
    assert max(p.confidence for p in points) < 0.06
