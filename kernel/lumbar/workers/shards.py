"""Which part of the studies this process does, where several processes share them.

Studies are dealt out by a hash of their id's text, so that every process knows its own without asking anybody, and a
study that is added later changes nobody else's. Which process this is, ``--shard I/N`` says, or the launcher's own
variables (``LAUNCHERS``).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lumbar.errors import CohortError

StudyId = TypeVar("StudyId", int, str, int | str)

_WORDS = "I/N with I from 0 to N - 1, auto, or auto/N"
_MOST = 1_000_000  # shards


@dataclass(frozen=True, slots=True)
class Shard:
    """One of ``count`` parts.

    Attributes:
        index: its number, from 0.
        count: of all parts.
        local_rank: number of this process among those of its machine; they share the machine's GPUs and cores.
        local_count: how many these are.
    """

    index: int
    count: int
    local_rank: int = 0
    local_count: int = 1

    @property
    def name(self) -> str:
        """As file names have it: ``0-of-4``."""
        return f"{self.index}-of-{self.count}"

    def has(self, study_id: int | str) -> bool:
        """Whether a study belongs to this part."""
        return shard_of(study_id, self.count) == self.index

    def own(self, study_ids: Iterable[StudyId]) -> list[StudyId]:
        """This part's studies, in their order."""
        return [study_id for study_id in study_ids if self.has(study_id)]

    def path(self, path: str | Path) -> Path:
        """The part's file: ``submission.csv`` → ``submission.0-of-4.csv``."""
        whole = Path(path)
        return whole.with_name(f"{whole.stem}.{self.name}{whole.suffix}")

    def devices(self, gpus: list[str]) -> list[str]:
        """The GPUs of this process: each its own, several where there are more GPUs than processes."""
        if not gpus or self.local_count == 1:
            return gpus
        return gpus[self.local_rank :: self.local_count] or [gpus[self.local_rank % len(gpus)]]


@dataclass(frozen=True, slots=True)
class Launcher:
    """The variables in which a launcher tells a process its number.

    Attributes:
        name: of the launcher.
        index: variable with the number, from 0.
        count: variable with the number of processes; empty where the launcher has none: ``auto/N`` gives it.
        first, last: variables with the lowest and the highest number; empty where there are none.
        local_rank, local_count: variables with the number on this machine and how many there are; empty for none.
    """

    name: str
    index: str
    count: str = ""
    first: str = ""
    last: str = ""
    local_rank: str = ""
    local_count: str = ""


TORCHRUN = Launcher("torchrun", "RANK", "WORLD_SIZE", local_rank="LOCAL_RANK", local_count="LOCAL_WORLD_SIZE")
LAUNCHERS = (
    TORCHRUN,
    Launcher("Slurm", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX"),
    Launcher("Kubernetes", "JOB_COMPLETION_INDEX"),
)


def shard_of(study_id: int | str, count: int) -> int:
    """The number of the part that a study belongs to; the same on every machine and in every version."""
    digest = hashlib.blake2b(str(study_id).encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % count


def find_shard(text: str | None, environment: Mapping[str, str] | None = None) -> Shard | None:
    """The part that this process does; None for all studies.

    Args:
        text: ``I/N``; ``auto`` or ``auto/N`` asks the launcher's variables; None does so under torchrun alone.
        environment: the variables; None for the process's own.

    Raises:
        CohortError: no such part, or variables that do not tell.
    """
    variables = os.environ if environment is None else environment
    if text is None:
        is_torchrun = TORCHRUN.index in variables and TORCHRUN.count in variables
        shard = _launched(TORCHRUN, None, variables) if is_torchrun else None
        return None if shard is None or shard.count == 1 else shard
    match = re.fullmatch(r"\s*(?:(\d+)|auto)(?:\s*/\s*(\d+))?\s*", text, re.ASCII)
    if match is None or (match[1] is not None and match[2] is None):
        raise CohortError(f"shard {text!r}: expected {_WORDS}")
    count = None if match[2] is None else int(match[2])
    if match[1] is not None:
        return _checked(f"shard {text!r}", int(match[1]), int(match[2]))
    for launcher in LAUNCHERS:
        if launcher.index in variables:
            return _launched(launcher, count, variables)
    names = ", ".join(f"{launcher.index} ({launcher.name})" for launcher in LAUNCHERS)
    raise CohortError(f"shard {text!r}: found none of the variables {names}, expected one, or I/N")


def _launched(launcher: Launcher, count: int | None, variables: Mapping[str, str]) -> Shard:
    """What a launcher's variables say; ``count`` stands above its own number of processes."""
    index = _number(launcher.index, variables)
    if count is None:
        if not launcher.count:
            raise CohortError(
                f"shard 'auto': found {launcher.index} without the number of parts, which {launcher.name} does not "
                "tell, expected auto/N"
            )
        count = _number(launcher.count, variables)
        _check_range(launcher, count, variables)
    local_rank = _number(launcher.local_rank, variables, 0)
    local_count = _number(launcher.local_count, variables, local_rank + 1)
    return _checked(f"{launcher.index}={index}", index, count, local_rank, max(local_count, 1))


def _check_range(launcher: Launcher, count: int, variables: Mapping[str, str]) -> None:
    """Some numbers of a range alone (``--array=2`` or ``1-4``) would leave studies to nobody."""
    first, last = _number(launcher.first, variables, 0), _number(launcher.last, variables, count - 1)
    if (first, last) != (0, count - 1):
        raise CohortError(
            f"shard 'auto': found {count} {launcher.name} tasks numbered {first} to {last}, expected 0 to {count - 1}; "
            "auto/N runs some of N parts alone"
        )


def _checked(where: str, index: int, count: int, local_rank: int = 0, local_count: int = 1) -> Shard:
    if not 1 <= count <= _MOST:
        raise CohortError(f"{where}: found {count} parts, expected 1 to {_MOST}")
    if index >= count:
        raise CohortError(f"{where}: found part {index} of {count}, expected 0 to {count - 1}")
    return Shard(index, count, local_rank, local_count)


def _number(name: str, variables: Mapping[str, str], default: int | None = None) -> int:
    """The whole number in a variable; the default where it is not set."""
    text = variables.get(name) if name else None
    if text is None and default is not None:
        return default
    if text is None or not re.fullmatch(r"[0-9]{1,9}", text.strip(), re.ASCII):
        raise CohortError(f"{name}: found {text!r}, expected a whole number of at least 0")
    return int(text)
