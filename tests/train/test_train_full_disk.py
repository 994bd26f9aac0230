"""Whatever a fit writes: on a full disk it is one line, and the former file stands."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lumbar.bundle.weights import save_network
from lumbar.errors import LumbarError
from lumbar.io import files
from lumbar_phantom.cohort import write_tables
from lumbar_train.engine.checkpoint import load_state, save_state, save_weights
from lumbar_train.files import write_bytes, write_text, write_with
from lumbar_train.outputs.store import write_frame

STATE = {"network": {"a": torch.zeros(50_000), "b": torch.zeros(50_000)}, "epoch": 3}
WRITERS = {
    "checkpoint": lambda path: save_state(path, STATE),
    "weights": lambda path: save_weights(path, nn.Linear(200, 200)),
    "shipped weights": lambda path: save_network(nn.Linear(200, 200), path),
    "parquet": lambda path: write_frame(path, pd.DataFrame({"a": np.random.default_rng(0).random(20_000)})),
    "arrays": lambda path: write_with(path, lambda file: np.savez(file, a=np.zeros(20_000))),
    "text": lambda path: write_text(path, "x" * 50_000),
    "bytes": lambda path: write_bytes(path, b"x" * 50_000, sync="none"),
}


@pytest.mark.parametrize("room", [0, 700, 10_000])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_one_line_and_the_former_file_stands(tmp_path, monkeypatch, kind, room):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    written = [0]
    real = files._TrackedFile.write

    def write(self, data):
        written[0] += len(memoryview(data).cast("B"))
        if written[0] > room:
            self.failure = OSError(28, "No space left on device")
            raise self.failure
        return real(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(files._TrackedFile, "write", write)
        with pytest.raises(LumbarError, match=r"No space left on device.*the disk is full; what was there") as caught:
            WRITERS[kind](path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]
    WRITERS[kind](path)
    assert path.read_bytes() != b"old"


def test_a_checkpoint_is_read_back_as_it_was(tmp_path):
    save_state(tmp_path / "checkpoint.pt", STATE)
    assert load_state(tmp_path / "checkpoint.pt")["epoch"] == 3


def test_a_phantom_cohort_on_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def write(self, data):
        self.failure = OSError(28, "No space left on device")
        raise self.failure

    monkeypatch.setattr(files._TrackedFile, "write", write)
    with pytest.raises(LumbarError, match=r"train\.csv: cannot be written \(No space left on device\)"):
        write_tables(tmp_path, "train", [])
    assert list(tmp_path.iterdir()) == []
