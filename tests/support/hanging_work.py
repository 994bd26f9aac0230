"""``python -m lumbar_train`` whose work lasts a quarter of an hour once it has begun; run as a script.

``WORK`` in the environment: ``cache`` decodes studies, ``baseline`` fits columns, both in two processes. Each piece of
work leaves a file in the folder ``BEGUN``, named after its number.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

import lumbar_train.__main__ as command_line
import lumbar_train.data.cache as cache

LASTS_S = 900


def hang(number: object) -> None:
    (Path(os.environ["BEGUN"]) / str(number)).touch()
    time.sleep(LASTS_S)


def decode(data: Path, out: Path, **_options: object) -> None:
    table = pd.DataFrame({"study_id": range(1, 7), "series_id": range(1, 7), "series_description": "Sagittal T1"})
    cache.build_cache(out / "cache", data, "train", table, workers=2)


def fit(job: Any) -> None:
    hang(job.number)


def fit_columns(data: Path, out: Path, **_options: object) -> None:
    from lumbar_train.baseline import run

    run.run_fit, run.replace = fit, lambda job, **_: job
    for _ in run._run([SimpleNamespace(number=k) for k in range(1, 7)], 2):
        pass


# the processes of a pool import this file too
cache.read_study = lambda _root, _split, study_id, *_, **__: hang(study_id)
if __name__ == "__main__":
    command_line.train = {"cache": decode, "baseline": fit_columns}[os.environ["WORK"]]
    sys.exit(command_line.command())
