"""Isolation of a rehearsal: no network, a read-only input, Kaggle's limits, as far as the system allows.

Best case (Linux): a network namespace with only its own loopback, which Jupyter needs, and a mount namespace in which
the input is mounted read-only. Otherwise every process of the notebook refuses connections beyond loopback, and the
input is protected by file permissions alone. The rehearsal prints which one it was.
"""

from __future__ import annotations

import fcntl
import functools
import os
import resource
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lumbar_publish.files import write_text
from lumbar_publish.sealing.smoke_test import ONLY_SEALED

KAGGLE_CPUS = 4
KAGGLE_GIB = 29

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_PROBE_TIMEOUT_S = 30

# Goes into the notebook's process through PYTHONPATH. Connections of worker processes are caught too: they inherit it.
_BLOCK = """\
import errno, socket
def _refuse(name):
    original = getattr(socket.socket, name)
    def guarded(self, *arguments):
        address = arguments[-1]
        host = address[0] if isinstance(address, tuple) else None
        if host is not None and not (str(host).startswith("127.") or host in ("::1", "localhost", "")):
            if name == "connect_ex":  # says by a number what the others raise
                return errno.ENETUNREACH
            raise OSError(errno.ENETUNREACH, f"no network in a rehearsal: {name} to {host}")
        return original(self, *arguments)
    setattr(socket.socket, name, guarded)
for _name in ("connect", "connect_ex", "sendto"):
    _refuse(_name)
"""


@dataclass(frozen=True)
class Isolation:
    """How a command is isolated: the command prefix, and what it provides."""

    prefix: tuple[str, ...]
    has_namespace: bool
    has_mounts: bool

    def __str__(self) -> str:
        network = "network namespace" if self.has_namespace else "connections blocked in the notebook's process"
        return f"no network ({network}), input read-only by {'mount' if self.has_mounts else 'file permissions'}"


@functools.cache
def best_isolation() -> Isolation:
    """The strongest isolation that this system allows, determined by trying."""
    for flags, mounts in ((("-n", "-m"), True), (("-r", "-n", "-m"), True), (("-n",), False), (("-r", "-n"), False)):
        prefix = ("unshare", *flags, "--")
        probe = [*prefix, sys.executable, "-c", _probe(mounts)]
        try:
            done = subprocess.run(
                probe, capture_output=True, timeout=_PROBE_TIMEOUT_S, check=False, env=our_environment()
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return Isolation(prefix, has_namespace=True, has_mounts=mounts)
    return Isolation((), has_namespace=False, has_mounts=False)


def _probe(mounts: bool) -> str:
    lines = ["import tempfile, pathlib", "from lumbar_publish.rehearsal import sandbox", "sandbox.loopback_up()"]
    if mounts:
        lines.append("d = pathlib.Path(tempfile.gettempdir()); sandbox.mount_read_only(d, d)")
    return "\n".join(lines)


def our_environment() -> dict[str, str]:
    """The environment in which a child imports the very packages that run now."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def loopback_up() -> None:
    """Bring up ``lo`` in a new network namespace; without it Jupyter's own sockets fail.

    Raises:
        OSError: not allowed here.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(control, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


def mount_read_only(source: Path, target: Path) -> None:
    """Show ``source`` at ``target`` without write access, in this mount namespace only.

    Raises:
        subprocess.CalledProcessError: not allowed here.
    """
    subprocess.run(["mount", "--bind", str(source), str(target)], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(target)], check=True, capture_output=True)


def limit_like_kaggle() -> None:
    """Kaggle's limits on this process and its children: at most 4 cores, 29 GiB of private memory a process."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:KAGGLE_CPUS])
    limit = KAGGLE_GIB << 30
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def write_sitecustomize(folder: Path, *, block_network: bool) -> None:
    """Python start-up of the notebook's processes: nothing of ours importable, and the network guard if asked for."""
    write_text(folder / "sitecustomize.py", ONLY_SEALED + (_BLOCK if block_network else ""))


def notebook_environment(kaggle: Path, site: Path, home: Path, keep: Sequence[str] = ()) -> dict[str, str]:
    """The notebook's environment: Kaggle's variables, and of ours only what the machine needs to run Python at all.

    Args:
        kaggle: what ``/kaggle`` would be.
        site: folder with ``sitecustomize.py``.
        home: an empty home.
        keep: names of further variables to keep.
    """
    machine = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", *keep)
    home.mkdir(parents=True, exist_ok=True)
    kept = {name: os.environ[name] for name in machine if name in os.environ}
    return {
        **kept,
        "HOME": str(home),
        "PYTHONPATH": str(site),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm asks for widgets, which nobody would see
        "LUMBAR_KAGGLE_ROOT": str(kaggle),
        "KAGGLE_KERNEL_RUN_TYPE": "Batch",
        "MPLBACKEND": "agg",
    }
