"""One training at a time in a run folder, and none that replaces another's fits without being asked to.

``RUN/run.lock`` names the process and the host of the training that writes the folder; a training of some folds alone
has a lock for these (``run-0-full.lock``), since several machines may share the folds of a stage. A lock whose process
has ended is taken over.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from lumbar.errors import CohortError
from lumbar_train.files import make_folder, read_object, write_text

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FILE = "run.lock"
_KEPT = ("recipe.json", "*/*.safetensors", "*/*/checkpoint.pt", "*/*/fit.json", "*/*/*/fit.json")


@dataclass(frozen=True)
class Owner:
    """The process that a lock belongs to.

    Attributes:
        pid: its number, unique only together with the other attributes.
        host: name of its machine.
        boot: which start of the machine, and which numbering of processes (a container has its own).
        began: clock ticks from the start of the machine to that of the process; 0 where the system does not tell.
        since: local time when the lock was taken.
        token: distinguishes two locks of one process.
        folds: the folds that it writes; none means all.
    """

    pid: int
    host: str
    boot: str
    began: int
    since: str
    token: str
    folds: tuple[str, ...] = ()

    @staticmethod
    def this_process(folds: tuple[str, ...] = ()) -> Owner:
        """The owner of a lock that this process takes now."""
        pid = os.getpid()
        since, token = time.strftime("%Y-%m-%d %H:%M:%S %Z"), secrets.token_hex(8)
        return Owner(pid, socket.gethostname(), _boot(), _began(pid) or 0, since, token, folds)


class RunLock:
    """Holds a run folder from ``acquire`` to ``release``, or for a ``with`` block.

    Args:
        out: the run folder; made if it is not there.
        resume: go on with the run in the folder.
        overwrite: replace fits of the run in the folder. Without either a folder that holds a run is refused.
        checks_run: whether to refuse such a folder.
        folds: the folds that are written, with commas between; None for all.
    """

    def __init__(
        self,
        out: Path,
        *,
        resume: bool = False,
        overwrite: bool = False,
        checks_run: bool = True,
        folds: str | None = None,
    ) -> None:
        words = tuple(word.strip() for word in (folds or "").split(","))
        self._folds = words if all(word.isalnum() for word in words) else ()
        self.out, self.path = out, out / "-".join(("run", *self._folds))
        self.path = self.path.with_name(f"{self.path.name}.lock")
        self._is_allowed = resume or overwrite or not checks_run
        self._mine: Owner | None = None
        self._made_folder = False

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            CohortError: the folder holds a run, or another training writes it.
            TrainingError: the folder cannot be made or written.
        """
        if not self._is_allowed:
            refuse_run(self.out)
        self._made_folder = not self.out.is_dir()
        make_folder(self.out)
        with _alone(self.out):
            for path in sorted(self.out.glob("run*.lock")):
                self._refuse_owner(path)
            mine = Owner.this_process(self._folds)
            write_text(self.path, json.dumps(asdict(mine)) + "\n")
            self._mine = mine

    def release(self) -> None:
        """Give the lock back; a folder that was made for it and is still empty is removed."""
        if self._mine is None:
            return
        with contextlib.suppress(OSError), _alone(self.out):
            if read_object(self.path).get("token") == self._mine.token:
                self.path.unlink()
        self._mine = None
        if self._made_folder:
            with contextlib.suppress(OSError):
                self.out.rmdir()

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _refuse_owner(self, path: Path) -> None:
        content = read_object(path)
        try:
            owner = Owner(**content)
        except TypeError:
            print(f"{path}: not readable, so no running process can own it; it is removed")
            path.unlink()
            return
        if is_stale(owner):
            print(f"{path}: removed: process {owner.pid}, which had locked the folder since {owner.since}, has ended")
            path.unlink()
            return
        if owner.folds and self._folds and not set(owner.folds) & set(self._folds):
            return
        what = f"{self.out}: found it in use by process {owner.pid} on {owner.host} since {owner.since}"
        if _is_here(owner):
            raise CohortError(f"{what}, expected one training at a time; wait for it, end it, or use another --out")
        raise CohortError(
            f"{what}, expected one training at a time; whether it still runs cannot be seen from "
            f"{socket.gethostname()}: if it has ended, remove {path}"
        )


def refuse_run(out: Path) -> None:
    """Refuse a folder that holds a run.

    Raises:
        CohortError: saying what is there, and what can be done.
    """
    if not holds_run(out):
        return
    n_fits = len(list(out.glob("*/*.safetensors")))
    recipe = read_object(out / "recipe.json").get("name", "an unknown recipe")
    fits = f"{n_fits} finished fit{'' if n_fits == 1 else 's'}"
    raise CohortError(
        f"{out}: found a run of {recipe} with {fits}, expected a folder without one; add --resume to go on with it, "
        "--overwrite to fit again what you ask for now, or use another --out"
    )


def holds_run(out: Path) -> bool:
    """Whether a folder holds what a training leaves; decoded studies alone are none."""
    return any(next(iter(out.glob(pattern)), None) is not None for pattern in _KEPT)


def owner_in(out: Path) -> Owner | None:
    """The process of this machine that writes a folder now."""
    return next((owner for _, owner in _owners(out)), None)


def locked_at(out: Path) -> float | None:
    """When the first process of this machine that writes a folder now took its lock (``time.time``); None: none."""
    times = []
    for path, _ in _owners(out):
        with contextlib.suppress(OSError):  # it has just ended
            times.append(path.stat().st_mtime)
    return min(times, default=None)


def _owners(out: Path) -> Iterator[tuple[Path, Owner]]:
    """The locks of a folder whose processes run on this machine."""
    for path in sorted(out.glob("run*.lock")):
        try:
            owner = Owner(**read_object(path))
        except TypeError:
            continue
        if _is_here(owner) and not is_stale(owner):
            yield path, owner


def is_stale(owner: Owner) -> bool:
    """Whether the process of a lock is known to have ended."""
    if owner.host != socket.gethostname():
        return False
    if not _is_here(owner):  # the machine was started anew since; another container cannot be told from that
        return owner.boot.partition(" ")[0] != _boot().partition(" ")[0]
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # somebody else's process
        return False
    began = _began(owner.pid)
    return began is None or (owner.began != 0 and began != owner.began)  # ended but not waited for, or another one


def _is_here(owner: Owner) -> bool:
    return (owner.host, owner.boot) == (socket.gethostname(), _boot())


def _boot() -> str:
    """Names this start of the machine, then the numbering of processes that this one belongs to; blank if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _began(pid: int) -> int | None:
    """Clock ticks at a process's start (proc(5), field 22 of stat); 0 if unknown, None where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return 0


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let no other process look at the folder's lock, or change it, in a block; where the system has such locks."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have none
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
