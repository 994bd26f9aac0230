"""Child processes of a rehearsal: started out of reach of Ctrl-C, timed, and ended whole."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lumbar.io.signals import descendants


@dataclass(frozen=True)
class Usage:
    """What a command took: wall seconds, its processor seconds with all its children, and those of everybody else."""

    wall_s: float
    cpu_s: float
    others_s: float | None = None  # None where the system does not say

    @property
    def waiting_share(self) -> float:
        """Share of the wall time in which not even one processor worked for the command: 0 to 1."""
        return max(0.0, 1.0 - self.cpu_s / self.wall_s) if self.wall_s > 0 else 0.0

    def line(self) -> str:
        """For the summary."""
        others = "" if self.others_s is None else f"; other processes used {self.others_s:.0f} s"
        return (
            f"processor    {self.cpu_s:.0f} s of computing in {self.wall_s:.0f} s on {os.cpu_count()} cores{others}; "
            f"{self.waiting_share:.0%} of the time was waiting"
        )


def run_timed(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, Usage]:
    """Run a command to its end: exit status and what it took.

    Ctrl-C does not reach the command (its processes would each print where they were): it ends this function, which
    ends the command with all its children first.
    """
    cpu_s, busy_s, start_s = _children_cpu_s(), _machine_busy_s(), time.monotonic()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:  # the mask is inherited
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        status = process.wait()
    except BaseException:
        end_tree(process)
        raise
    wall_s, cpu_s = time.monotonic() - start_s, _children_cpu_s() - cpu_s
    after_s = _machine_busy_s()
    others_s = None if busy_s is None or after_s is None else max(0.0, after_s - busy_s - cpu_s)
    return status, Usage(wall_s, cpu_s, others_s)


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that came from it, those in sessions of their own included, and wait for it."""
    for pid in [process.pid, *descendants(process.pid)]:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _children_cpu_s() -> float:
    """Processor seconds of all children that have ended, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _machine_busy_s() -> float | None:
    """Seconds that the machine's processors have worked since it was started (proc(5): /proc/stat, without idle)."""
    try:
        first = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()
        user, nice, system, _, _, irq, softirq = map(int, first[1:8])
        return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None
