"""The probe of external members: their answer to a made-up study, recorded when they join and compared before use.

The study has all three series and a point of every kind at every level, so that a member has something to look at; the
pixels are seeded noise that goes through the same normalisation as real ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lumbar.bundle.probe_rule import PROBE_TOLERANCE, PROBE_VALUES, differing
from lumbar.dicom import Stack
from lumbar.errors import ManifestError
from lumbar.labels import AXIAL_T2, LEVELS, SAGITTAL_T1, SAGITTAL_T2, SIDES
from lumbar.stages.external import ExternalMember
from lumbar.stages.points import AxialLevel, Localisation, SagittalPoint, Xyz, as_xyz
from lumbar.study import Study

_HEIGHT_MM = 35.0  # of a level
_FORAMEN_MM = 16.0  # from the midline


def made_up_study(seed: int) -> tuple[Study, Localisation]:
    """A seeded study of noise with a T1, a T2 and an axial series, and the points of all five levels on them."""
    rng = np.random.default_rng(seed)
    right_to_left = [[4.0 * i - 20.0, -110.0, 110.0] for i in range(11)]
    foot_to_head = [[-80.0, -80.0, 5.0 * i - 95.0] for i in range(39)]
    series = {
        name: [_noise(rng, str(number), origins, row, column)]
        for number, (name, origins, row, column) in enumerate(
            (
                (SAGITTAL_T2, right_to_left, (0.0, 0.0, -2.5), (0.0, 2.5, 0.0)),
                (SAGITTAL_T1, right_to_left, (0.0, 0.0, -2.5), (0.0, 2.5, 0.0)),
                (AXIAL_T2, foot_to_head, (0.0, 2.5, 0.0), (2.5, 0.0, 0.0)),
            ),
            start=1,
        )
    }
    place = Localisation()
    for level, name in enumerate(LEVELS):
        z_mm = _HEIGHT_MM * (2 - level)
        place.levels_mm[name] = (0.0, 0.0, z_mm)
        for description in (SAGITTAL_T2, SAGITTAL_T1):
            for side in (None, *SIDES):
                x_mm = {None: 0.0, "left": _FORAMEN_MM, "right": -_FORAMEN_MM}[side]
                place.sagittal_points.append(_point(series[description][0], description, name, side, x_mm, z_mm))
        place.axial_levels.append(_axial(series[AXIAL_T2][0], name, z_mm))
    return Study(study_id=0, series=series), place


def _noise(rng: np.random.Generator, series_id: str, origins: list[list[float]], row: Xyz, column: Xyz) -> Stack:
    n, side = len(origins), 64 if series_id == "3" else 88
    coarse = rng.random((n, side // 4, side // 4)) * 900.0 + 40.0
    return Stack(
        series_id=series_id,
        volume=coarse.repeat(4, axis=1).repeat(4, axis=2).astype(np.float32),
        origins_mm=np.array(origins),
        row_mm=np.array(row),
        column_mm=np.array(column),
        instance_numbers=list(range(1, n + 1)),
    )


def _point(stack: Stack, description: str, level: str, side: str | None, x_mm: float, z_mm: float) -> SagittalPoint:
    index = int(np.argmin(np.abs(stack.origins_mm[:, 0] - x_mm)))
    x_px, y_px = (0.0 - stack.origins_mm[index, 1]) / 2.5, (stack.origins_mm[index, 2] - z_mm) / 2.5
    return SagittalPoint(
        series_id=stack.series_id, level=level, side=side, instance_number=index + 1, x_px=float(x_px),
        y_px=float(y_px), xyz_mm=as_xyz((x_mm, 0.0, z_mm)), confidence=0.9, slice_index=index, description=description,
    )  # fmt: skip


def _axial(stack: Stack, level: str, z_mm: float) -> AxialLevel:
    index = int(np.argmin(np.abs(stack.origins_mm[:, 2] - z_mm)))
    y_px = float((0.0 - stack.origins_mm[index, 1]) / 2.5)
    return AxialLevel(
        series_id=stack.series_id, level=level, instance_number=index + 1,
        distance_mm=float(stack.origins_mm[index, 2] - z_mm), left_px=(y_px + 4.0, y_px), right_px=(y_px - 4.0, y_px),
        confidence=0.9, slice_index=index,
    )  # fmt: skip


def run_member_probe(member: ExternalMember, seed: int) -> list[float]:
    """Evenly spaced values of a member's logits for the made-up study, those that it masks left out.

    Raises:
        ManifestError: what it returns is not what ``predict`` must return.
        Exception: whatever ``predict`` raises.
    """
    study, place = made_up_study(seed)
    logits, mask = member.logits(study, place, flip=True, all_folds=True)
    shown = logits[mask].reshape(-1)
    step = max(1, len(shown) // PROBE_VALUES)
    return [round(float(value), 5) for value in shown[::step][:PROBE_VALUES]]


def record_member_probe(member: ExternalMember, seed: int = 0) -> dict[str, Any]:
    """The probe of a member for the manifest.

    Raises:
        ManifestError: the second answer to the same study is another one.
        Exception: as ``run_member_probe``.
    """
    first, second = run_member_probe(member, seed), run_member_probe(member, seed)
    if difference := differing(second, first, PROBE_TOLERANCE):
        raise ManifestError(f"predict: the second answer to one study has {difference}, expected the same as the first")
    return {"seed": seed, "expected": first, "tolerance": PROBE_TOLERANCE}


def check_member_probe(member: ExternalMember, probe: Mapping[str, Any], where: str) -> None:
    """Compare a member's answer to the made-up study with the one that the manifest gives.

    Args:
        member: as loaded.
        probe: of the manifest.
        where: whose it is, for the message.

    Raises:
        ManifestError: the answers differ: code, library versions and weights do not belong together.
        Exception: as ``run_member_probe``.
    """
    values = run_member_probe(member, probe["seed"])
    if difference := differing(values, probe["expected"], probe["tolerance"]):
        raise ManifestError(
            f"{where}: probe gave {difference}: code or library versions differ from those that it was sealed with"
        )
