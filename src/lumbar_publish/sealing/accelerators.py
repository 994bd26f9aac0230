"""The machines that a notebook can ask Kaggle for, and how long it may run there.

Source: docs/kernels.md of github.com/Kaggle/kaggle-cli (list of September 2026, as corrected by its #1198), and the
client's own table of retired ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lumbar.competitions.contract import Competition
from lumbar.errors import ManifestError

NONE = "none"
DEFAULT = "NvidiaTeslaT4"
IMAGES = ("latest", "original")  # docker_image_pinning_type
_SESSION_HOURS = {"cpu": 12.0, "gpu": 12.0, "tpu": 9.0}  # of a notebook outside of any competition


@dataclass(frozen=True)
class Accelerator:
    """A machine: its name in ``machine_shape``, whether ``cpu``, ``gpu`` or ``tpu``, what it is, and how many GPUs."""

    name: str
    kind: str
    what: str
    gpus: int = 0

    @property
    def session_hours(self) -> float:
        """Hours of a session outside of any competition."""
        return _SESSION_HOURS[self.kind]

    def hours(self, competition: Competition) -> float:
        """Hours that a run may take: the competition's limit (the same for CPU and GPU), or the session's if less."""
        return min(competition.hours, _SESSION_HOURS[self.kind])

    def __str__(self) -> str:
        return f"{self.name} ({self.what})"


_SOME = "for participants of some competitions"
ACCELERATORS = {
    machine.name: machine
    for machine in (
        Accelerator(NONE, "cpu", "CPU only, no quota"),
        Accelerator("NvidiaTeslaT4", "gpu", "two T4, the default GPU", 2),
        Accelerator("NvidiaL4", "gpu", f"four L4, {_SOME}", 4),
        Accelerator("NvidiaL4X1", "gpu", f"one L4, {_SOME}", 1),
        Accelerator("NvidiaTeslaA100", "gpu", f"A100, {_SOME}", 1),
        Accelerator("NvidiaH100", "gpu", f"H100, {_SOME}", 1),
        Accelerator("NvidiaRtxPro6000", "gpu", f"RTX Pro 6000, {_SOME}", 1),
        Accelerator("TpuV5E8", "tpu", "TPU v5e-8, the default TPU; this kernel computes on its CPU"),
        Accelerator("TpuV6E8", "tpu", f"TPU v6e-8, {_SOME}; this kernel computes on its CPU"),
    )
}
# Kaggle accepts these names without a warning and runs the notebook on the machine given here.
_RETIRED = {
    "NvidiaTeslaP100": "NvidiaTeslaT4",
    "TpuV38": "TpuV5E8",
    "Tpu1VmV38": "TpuV5E8",
    "TpuV232": NONE,
    "TpuV2256": NONE,
}


def accelerator(name: str) -> Accelerator:
    """Look up a machine by its name; upper and lower case do not matter.

    Raises:
        ManifestError: an unknown or retired name; the message lists the valid ones.
    """
    known = {key.lower(): machine for key, machine in ACCELERATORS.items()}
    if machine := known.get(name.strip().lower()):
        return machine
    retired = {key.lower(): instead for key, instead in _RETIRED.items()}.get(name.strip().lower())
    hint = f" (retired: Kaggle would run it on {retired})" if retired else ""
    raise ManifestError(f"accelerator {name!r}{hint}: expected one of {', '.join(ACCELERATORS)}")


def machine_metadata(machine: Accelerator, image: str) -> dict[str, Any]:
    """The fields of ``kernel-metadata.json`` that say where a notebook runs.

    Args:
        machine: the accelerator.
        image: ``latest``, or ``original`` for the image of the notebook's first version.
    """
    return {
        "docker_image_pinning_type": image,
        "enable_gpu": machine.kind == "gpu",
        "enable_tpu": machine.kind == "tpu",
        "machine_shape": "" if machine.name == NONE else machine.name,
    }


def machine_from_metadata(metadata: dict[str, Any]) -> Accelerator:
    """The machine that a ``kernel-metadata.json`` asks for.

    Raises:
        ManifestError: an unknown one.
    """
    if not metadata.get("enable_gpu") and not metadata.get("enable_tpu"):
        return ACCELERATORS[NONE]
    default = "TpuV5E8" if metadata.get("enable_tpu") else DEFAULT
    return accelerator(str(metadata.get("machine_shape") or default))
