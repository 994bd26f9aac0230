"""What members cost a study, by counted operations, and how many seconds a study a machine has for them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from lumbar.competitions.lumbar_spine import COMPETITION
from lumbar.config import SagittalClassifierConfig
from lumbar.errors import CohortError
from lumbar.labels import LEVELS
from lumbar_train.pipeline.cost import forward_flops
from lumbar_train.pipeline.machines import A100, T4, Machine
from lumbar_train.stages.losses import graded_loss

MACHINES = {machine.name.lower(): machine for machine in (T4, A100)}
# Of the time limit, what is left to classifiers: reading, localisation, the reserve for the last write. Counted
# operations are good to a factor of two (``pipeline.machines``); the kernel's own budget sees to the rest.
SHARE = 0.5
_VIEWS = 2  # the patient and the mirrored one
_SAGITTAL, _NEAR = 17, 9  # slices of a sagittal series, and axial ones near a level


@dataclass(frozen=True)
class Target:
    """The machine that an ensemble must fit, and its time limit."""

    hours: float
    devices: int
    machine: Machine

    @property
    def study_s(self) -> float:
        """Seconds of one device that the classifiers may take for a study of the hidden test."""
        return SHARE * self.hours * 3600 * self.devices / COMPETITION.hidden_studies

    @property
    def text(self) -> str:
        """The target in words."""
        return f"{self.hours:g} h on {self.devices} x {self.machine.name}"


def parse_target(text: str) -> Target:
    """``9h@2xT4`` or ``9h@A100``.

    Raises:
        CohortError: anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)h@(?:(\d+)x)?([A-Za-z0-9]+)\s*", text)
    machine = MACHINES.get(match[3].lower()) if match else None
    if match is None or machine is None or not float(match[1]) or match[2] == "0":
        known = ", ".join(one.name for one in MACHINES.values())
        raise CohortError(f"--budget: found {text!r}, expected hours and machines such as 9h@2xT4, of {known}")
    return Target(float(match[1]), int(match[2] or 1), machine)


def study_flops(config: Any) -> float:
    """Operations of one fit of a classifier for one study: five levels, the patient and the mirrored one."""
    images = images_of(config)
    return forward_flops(config, graded_loss, slices=images) * images * len(LEVELS) * _VIEWS


def images_of(config: Any) -> int:
    """Slices of one level that a classifier looks at; where it takes whole series, those of a usual study."""
    is_sagittal = isinstance(config, SagittalClassifierConfig)
    if config.max_slices:
        most = int(config.max_slices)
        return 2 * min(_SAGITTAL, most) if is_sagittal else min(_NEAR, most)
    return int(config.window) * (3 if is_sagittal else 1)
