"""What members cost a study, by counted operations, and how many seconds a study a machine has for them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumbar.bundle.member_seconds import FILE, KEY, weights_key
from lumbar.competitions.lumbar_spine import COMPETITION
from lumbar.errors import CohortError
from lumbar_train.pipeline.cost import forward_flops
from lumbar_train.pipeline.counts import CohortCounts, classifier_images
from lumbar_train.pipeline.machines import A100, T4, Machine
from lumbar_train.stages.losses import graded_loss

MACHINES = {machine.name.lower(): machine for machine in (T4, A100)}
# Of the time limit, what is left to classifiers: reading, localisation, the reserve for the last write. Counted
# operations are good to a factor of two (``pipeline.machines``); the kernel's own budget sees to the rest.
SHARE = 0.5


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


def study_flops(config: Any, counts: CohortCounts) -> float:
    """Operations of one fit of a classifier for one study, as a plan counts them.

    Args:
        config: of the classifier.
        counts: of the cohort whose studies are like those to predict.
    """
    slices = max(1, round(float(counts.images(config).mean())))
    return forward_flops(config, graded_loss, slices=slices) * classifier_images(config, counts)


def measured_seconds(run: Path, data: Mapping[str, Any], machine: Machine) -> dict[str, float]:
    """Seconds of one fit and one view of each classifier of a run, where its sealing measured them for a machine.

    Args:
        run: the run folder.
        data: JSON of its export's manifest; seconds of other weights do not count.
        machine: that the seconds must be meant for.

    Raises:
        CohortError: the file in the run is damaged.
    """
    if not (run / FILE).is_file():
        return {}
    try:
        told = json.loads((run / FILE).read_text("utf-8"))
        own = told[KEY]
        if told["weights"] != weights_key(data) or not own["machine"].startswith(f"NvidiaTesla{machine.name} "):
            return {}
        return {name: float(seconds) for name, seconds in own["members"].items()}
    except (ValueError, OSError, KeyError, TypeError, AttributeError):
        raise CohortError(
            f"{run / FILE}: found no seconds of members, expected what sealing wrote; remove it"
        ) from None


def views_of(config: Any) -> int:
    """How often a fit looks at a study: also as the mirrored patient, unless it is the same for both sides."""
    return 1 if getattr(config, "share_sides", False) else 2
