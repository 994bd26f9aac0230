"""Writes the floor of a phantom cohort as a submission: ``python -m lumbar_phantom.oracle``.

The floor is the answer of an oracle that knows every true narrowing. Only luck can beat it, because what remains is the
noise of the readers. Where ``truth.parquet`` has no narrowing (the series was not acquired), the oracle answers with
the cohort's own weighted frequencies.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from lumbar import labels
from lumbar.errors import CohortError, LumbarError
from lumbar.io.files import write_atomically
from lumbar.io.path_options import FOLDER, NEW_CSV, check_paths
from lumbar.io.tables import csv_text
from lumbar.io.text import one_line
from lumbar.metric import prior_table, read_table
from lumbar_phantom import severity

_WEIGHTS = np.array(labels.SEVERITY_WEIGHTS)


def oracle_frame(root: Path, split: str) -> pd.DataFrame:
    """The oracle's submission for one split of a labelled phantom cohort.

    Raises:
        CohortError: there is no truth, or there are no labels.
    """
    table = root / ("train.csv" if split == "train" else "solution.csv")
    for path in (table, root / "truth.parquet"):
        if not path.is_file():
            raise CohortError(f"{path}: not found, expected a phantom cohort with its truth")
    solution, truth = read_table(table, "the labels"), pd.read_parquet(root / "truth.parquet")
    known = truth.groupby(["study_id", "condition", "level"])["narrowing"].first()
    prior = prior_table(solution)
    parts = []
    for study in solution["study_id"]:
        narrowing = np.array(
            [[known.get((study, c, level), np.nan) for level in labels.LEVELS] for c in labels.CONDITIONS], dtype=float
        )
        probs = (severity.oracle_probs(np.nan_to_num(narrowing)) * _WEIGHTS).reshape(25, 3)
        missing = np.isnan(narrowing).reshape(25)
        probs[missing] = np.array([prior[column] for column in labels.COLUMNS])[missing]
        probs = np.clip(probs / probs.sum(1, keepdims=True), 1e-6, 1)
        frame = pd.DataFrame(probs, columns=list(labels.SEVERITY_COLUMNS))
        frame.insert(0, "row_id", labels.row_ids(int(study)))
        parts.append(frame)
    out = pd.concat(parts, ignore_index=True)
    values = out[list(labels.SEVERITY_COLUMNS)]
    out[list(labels.SEVERITY_COLUMNS)] = values.div(values.sum(axis=1), axis=0)
    return out


def main(argv: list[str] | None = None) -> int:
    """Run the command: 0 on success, 1 with one line on bad input."""
    parser = argparse.ArgumentParser(prog="python -m lumbar_phantom.oracle", description=__doc__)
    parser.add_argument("--data", type=FOLDER, required=True, metavar="ROOT", help="phantom cohort with truth.parquet")
    parser.add_argument("--split", choices=("train", "test"), default="test", help="default: %(default)s")
    parser.add_argument("--out", type=NEW_CSV, required=True, metavar="CSV", help="submission to write")
    options = parser.parse_args(argv)
    try:
        check_paths(parser, options)
        write_atomically(options.out, csv_text(oracle_frame(options.data, options.split)))
    except (LumbarError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
