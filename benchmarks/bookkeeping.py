"""What the bookkeeping of a large run costs, without any prediction: journal and submission of N studies.

python benchmarks/bookkeeping.py [STUDIES [FOLDER]]
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lumbar.chains.contract import Outcome
from lumbar.labels import COLUMNS
from lumbar.output.journal import Journal
from lumbar.output.submission import Submission

POINT = {
    "series_id": "1234567890", "level": "l1_l2", "side": None, "instance_number": 7, "x_px": 103.25, "y_px": 55.125,
    "xyz_mm": [1.25, 2.5, 3.75], "confidence": 0.91,
}  # fmt: skip


def main(n_studies: int = 100_000, folder: str | None = None) -> None:
    rng = np.random.default_rng(0)
    answers = [rng.dirichlet((2.0, 1.0, 1.0), 25) for _ in range(100)]
    prior = {column: (0.6, 0.3, 0.1) for column in COLUMNS}
    with tempfile.TemporaryDirectory(dir=folder) as name:
        out = Path(name) / "submission.csv"
        start, cpu = time.perf_counter(), time.process_time()
        journal = Journal(f"{out}.journal")
        submission = Submission(range(n_studies), prior, out)
        print(f"prior rows: {time.perf_counter() - start:.1f} s")
        for study_id in range(n_studies):
            probs = answers[study_id % len(answers)]
            journal[study_id] = Outcome(
                study_id, probs, seconds={"read": 0.1, "study": 0.5}, sagittal_points=[POINT] * 15
            )
            submission.replace(study_id, probs, is_normalised=True)
        submission.write()
        submission.check()
        journal.close()
        print(
            f"{n_studies} studies: {time.perf_counter() - start:.1f} s, of the CPU {time.process_time() - cpu:.1f} s; "
            f"the file was written {submission.n_writes} times"
        )


if __name__ == "__main__":
    main(*[int(word) if number == 0 else word for number, word in enumerate(sys.argv[1:])])
