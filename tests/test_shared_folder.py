"""What all workers of pytest share is made once, and never seen half made."""

import threading
from types import SimpleNamespace

import pytest

from shared_folder import shared_folder


@pytest.fixture
def workers(tmp_path, monkeypatch):
    """Two workers' factories of temporary folders, below one folder."""
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")

    def factory(base):
        base.mkdir()
        return SimpleNamespace(getbasetemp=lambda: base, mktemp=lambda name: (base / name).mkdir() or base / name)

    return [factory(tmp_path / name) for name in ("gw0", "gw1")]


def test_a_folder_is_made_by_one_worker_while_the_other_waits(workers):
    made, folders, may_end = [], [], threading.Event()

    def make(folder):
        folder.mkdir()
        made.append(folder)
        may_end.wait(5)
        (folder / "last.txt").write_text("whole")

    def ask(factory):
        folder = shared_folder(factory, "thing", make)
        folders.append((folder, (folder / "last.txt").read_text()))

    threads = [threading.Thread(target=ask, args=(factory,)) for factory in workers]
    for thread in threads:
        thread.start()
    may_end.set()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert folders[0] == folders[1]
    assert folders[0][1] == "whole"


def test_a_folder_whose_making_failed_is_made_by_the_next(workers):
    def fail(folder):
        folder.mkdir()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        shared_folder(workers[0], "thing", fail)
    folder = shared_folder(workers[1], "thing", lambda folder: folder.mkdir())
    assert list(folder.iterdir()) == []
