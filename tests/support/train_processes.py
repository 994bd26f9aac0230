"""Trainings of the tiny recipe in processes of their own, also under ``torchrun``."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def tiny_command(data: Path, out: Path) -> list[str]:
    command = [str(PROJECT / "tests/support/train_tiny.py"), "train", "--data", str(data), "--recipe", "tiny"]
    return [*command, "--out", str(out), "--workers", "0", "--device", "cpu", "--amp", "off"]


def environment() -> dict[str, str]:
    path = f"{PROJECT / 'kernel'}:{PROJECT / 'src'}:{PROJECT / 'tests' / 'support'}"
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def run_torchrun(world: int, data: Path, out: Path, *more: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    command += [*tiny_command(data, out), *more]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=1500)


@contextmanager
def two_machines(said: list[Path], data: Path, out: Path, *more: str) -> Iterator[list[subprocess.Popen]]:
    """``torchrun`` twice, each with its errors in a file; both are ended however the test ends."""
    with free_port() as port, ExitStack() as stack:
        machines = []
        for rank, path in enumerate(said):
            group = ["--nnodes=2", f"--node-rank={rank}", "--nproc-per-node=1"]
            group += ["--master-addr=127.0.0.1", f"--master-port={port}"]
            command = [sys.executable, "-m", "torch.distributed.run", *group, *tiny_command(data, out), *more]
            errors = stack.enter_context(path.open("w"))
            machine = subprocess.Popen(command, env=environment(), stderr=errors, stdout=subprocess.DEVNULL)
            stack.enter_context(machine)  # waits for it
            stack.callback(machine.terminate)  # which it passes on to its process
            machines.append(machine)
        yield machines


@contextmanager
def free_port() -> Iterator[int]:
    """A port that nothing else is given while it is held here, where a listener may still take it."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("", 0))
        yield holder.getsockname()[1]
