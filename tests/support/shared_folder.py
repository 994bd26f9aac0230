"""Folders that are made once for all workers of pytest."""

import fcntl
import os


def shared_folder(tmp_path_factory, name, make):
    """The folder ``name``, which the first worker that asks for it fills by ``make(folder)`` while the others wait.

    A folder whose making failed is made again by the next worker that asks.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # each worker has a folder of its own in it
    folder = base / f"shared-{name}"
    with open(base / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # freed when the file is closed, or its process ends
        if not folder.exists():
            work = tmp_path_factory.mktemp(name) / "work"
            make(work)
            work.rename(folder)
    return folder
