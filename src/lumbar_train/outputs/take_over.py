"""Takes the run of another folder over, which may be read-only or of another machine; nothing is written there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from lumbar.errors import CohortError
from lumbar.io.path_options import did_you_mean_path
from lumbar_train.files import atomic_file, make_folder, read_object, write_text
from lumbar_train.outputs.run_lock import holds_run, owner_in
from lumbar_train.outputs.session import FILE as SESSION
from lumbar_train.outputs.session import check_version

MARK = "taken_over.json"
RESUME = "--resume"
_MADE_ANEW = ("cache", "export", "report")  # folders: decoded studies may be large, and stay where they are


def is_same_folder(source: Path, out: Path) -> bool:
    """Whether both are one folder, so that there is nothing to take over."""
    return source.resolve() == out.resolve()


def check_source(source: Path, out: Path, option: str = RESUME) -> None:
    """Refuse a folder that a run, or a part of it, cannot be taken over from into another one.

    Args:
        source: the folder.
        out: the other one.
        option: that names the folder.

    Raises:
        CohortError: what is wrong with either.
    """
    if not source.is_dir():
        reason = "found a file" if source.exists() else "no such folder"
        raise CohortError(f"{option} {source}: {reason}, expected a run folder{did_you_mean_path(source, 'folder')}")
    if not holds_run(source):
        raise CohortError(f"{option} {source}: found no run, expected a folder that a training has left")
    check_version(source)
    if is_same_folder(source, out):
        if option == RESUME:
            return
        raise CohortError(f"--out {out}: found the folder of {option}, expected another one")
    if source.resolve() in out.resolve().parents:
        raise CohortError(f"--out {out}: found inside {source}, expected a folder outside what {option} only reads")
    owner = owner_in(source)
    if owner is not None:
        raise CohortError(f"{option} {source}: found it in use by process {owner.pid}, expected a run that has ended")
    _check_target(source, out, option)


def _check_target(source: Path, out: Path, option: str) -> None:
    """Refuse to mix two runs; one that was taken over from the source before is gone on with."""
    mark = read_object(out / MARK)
    if not mark and not holds_run(out):
        return
    if option != RESUME and (mark.get("run"), mark.get("option")) != (run_name(source), option):
        raise CohortError(f"--out {out}: found another run, expected an empty folder, or a run with {option} {source}")
    if mark.get("run") != run_name(source):
        raise CohortError(
            f"--out {out}: found another run, expected an empty folder, or the run of {source}; "
            "--resume alone goes on with what is there"
        )
    there, here = (int(read_object(folder / SESSION).get("sessions", 0)) for folder in (source, out))
    if option == RESUME and mark.get("is_whole") and there > here:
        raise CohortError(
            f"--out {out}: found the run after {here} sessions, expected no less than the {there} of {source}; "
            "use another --out"
        )


def check_whole(out: Path) -> None:
    """Refuse to go on with a run that was copied in part.

    Raises:
        CohortError: how to copy the rest.
    """
    mark = read_object(out / MARK)
    if mark and not mark.get("is_whole"):
        raise CohortError(
            f"{out}: found a run that was taken over in part, expected all of it; "
            f"give {mark.get('option', RESUME)} {mark.get('from')} again"
        )


def run_name(run: Path) -> str:
    """Names a run wherever it is copied to; for one of before ``session.json`` by its recipe and folds."""
    noted = read_object(run / SESSION).get("run")
    if noted:
        return str(noted)
    digest = hashlib.sha256()
    for name in ("recipe.json", "folds.csv"):
        with suppress(OSError):
            digest.update((run / name).read_bytes())
    return digest.hexdigest()[:16]


def take_over(source: Path, out: Path, option: str = RESUME, names: Collection[str] | None = None) -> int:
    """Copy a run's fits, checkpoints, tables and notes; where that was interrupted, go on. Gives the number of files.

    Args:
        source: the run.
        out: where to.
        option: that asks for it.
        names: the folders and files of the run that are copied; None for all that belongs to it.

    Raises:
        CohortError: as ``check_source``.
        TrainingError: the disk is full, or ``out`` cannot be written.
    """
    check_source(source, out, option)
    if is_same_folder(source, out) or read_object(out / MARK).get("is_whole"):
        return 0
    mark = {"run": run_name(source), "from": str(source), "option": option, "is_whole": False}
    write_text(out / MARK, json.dumps(mark) + "\n")
    linked: dict[tuple[int, int], Path] = {}
    files = [path for path in _files(source) if names is None or path.relative_to(source).parts[0] in names]
    for path in files:
        _copy(path, out / path.relative_to(source), linked)
    write_text(out / MARK, json.dumps(mark | {"is_whole": True}) + "\n")
    return len(files)


def _files(source: Path) -> Iterator[Path]:
    """What belongs to a run, in a fixed order."""
    for folder, names, files in os.walk(source):
        here = Path(folder)
        if here == source:
            names[:] = [name for name in names if name not in _MADE_ANEW and not (here / name / "objects").is_dir()]
        names.sort()
        for name in sorted(files):
            if name != MARK and not name.endswith(".lock") and not name.startswith(".tmp-"):
                yield here / name


def _copy(path: Path, target: Path, linked: dict[tuple[int, int], Path]) -> None:
    """Copy a file; names of the same file stay names of one."""
    stat = path.stat()
    key = (stat.st_dev, stat.st_ino)
    if stat.st_nlink > 1 and key in linked:
        make_folder(target.parent)
        with suppress(OSError):
            target.unlink(missing_ok=True)
            target.hardlink_to(linked[key])
            return
    with atomic_file(target) as copy, path.open("rb") as file:
        shutil.copyfileobj(file, copy, 1 << 20)
    linked[key] = target
