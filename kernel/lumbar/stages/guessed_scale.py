"""The pixel spacing of series whose files have none: the one at which the levels are seen best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from lumbar.dicom import Stack
from lumbar.models.heatmap import HeatmapNet
from lumbar.stages.heat import sagittal_heat
from lumbar.stages.place import fuse_levels
from lumbar.stages.points import Localisation
from lumbar.study import Study

# Longer side of the image in mm. Sagittal images of the lumbar spine mostly show 250 to 400 mm; what lies between two
# of these the patient's pose makes up for.
FIELDS_MM = (220.0, 290.0, 380.0, 500.0)


def estimate_scales(study: Study, stacks: Sequence[tuple[str, int]], networks: list[nn.Module]) -> list[str]:
    """Give every sagittal stack without a pixel spacing the one at which its levels are seen best.

    The stacks of the study change. Stacks with a spacing stay as they are, and nothing is estimated for networks that
    see the whole image at any scale.

    Args:
        study: its stacks.
        stacks: description and number of each sagittal stack.
        networks: the sagittal localisers.

    Returns:
        A line for each stack that changed.
    """
    lines = []
    for description, number in stacks:
        stack = study.series[description][number]
        if isinstance(networks[0], HeatmapNet) and stack.is_spacing_guessed:
            spacings = [field / max(stack.volume.shape[1:]) for field in FIELDS_MM]
            best = max(spacings, key=lambda step: _seen(study, description, number, stack, step, networks))
            study.series[description][number] = scaled(stack, best)
            lines.append(f"series {stack.series_id}: pixel spacing estimated from the image, {best:.2f} mm")
    return lines


def scaled(stack: Stack, step: float) -> Stack:
    """A stack with an estimated pixel spacing in mm for the default of 1 mm, its first pixels where they were."""
    return replace(stack, row_mm=stack.row_mm * step, column_mm=stack.column_mm * step, is_spacing_guessed=False)


def _seen(study: Study, description: str, number: int, stack: Stack, step: float, networks: list[nn.Module]) -> float:
    """How surely five levels are seen at a spacing: the sum of their confidences."""
    study.series[description][number] = scaled(stack, step)
    return sum(fuse_levels([sagittal_heat(study, description, number, networks)], Localisation()).values())
