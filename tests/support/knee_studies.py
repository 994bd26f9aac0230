"""Data of the invented competition of examples/another_competition, as small DICOM files."""

import numpy as np
import pandas as pd

from series_writer import SAGITTAL, write

FINDINGS = ("acl_tear", "meniscus_tear")
BROKEN = 999  # a study whose files are no DICOM


def knee_slice(labels, rng):
    """An image whose upper left is bright with the first finding, its lower right with the second."""
    image = rng.integers(100, 300, (40, 32))
    image[4:16, 4:14] += 600 * labels[0]
    image[24:36, 18:28] += 600 * labels[1]
    return image.astype(np.uint16)


def write_knees(root, n_train=24, n_test=4, is_broken=True):
    """A competition folder; returns the test studies' labels by id, those of the broken one included."""
    rng = np.random.default_rng(5)
    truth = {}
    for split, first, count in (("train", 100, n_train), ("test", 500, n_test)):
        labels = {first + k: (k % 2, k // 2 % 2) for k in range(count)}
        for study_id, grades in labels.items():
            folder = root / split / str(study_id)
            for number in range(1, 6):
                position = (4.0 * number, 0.0, 0.0)
                write(folder, number, position=position, orientation=SAGITTAL, pixels=knee_slice(grades, rng))
        if split == "test" and is_broken:
            (root / split / str(BROKEN)).mkdir()
            (root / split / str(BROKEN) / "1.dcm").write_bytes(b"no DICOM")
            labels[BROKEN] = (1, 0)
        pd.DataFrame({"study_id": list(labels), "sex": "F"}).to_csv(root / f"{split}_studies.csv", index=False)
        rows = [(study_id, *grades) for study_id, grades in labels.items()]
        table = pd.DataFrame(rows, columns=["study_id", *FINDINGS])
        table.to_csv(root / f"{split}_labels.csv", index=False)
        truth = labels
    pd.DataFrame({"study_id": list(truth), **dict.fromkeys(FINDINGS, 0.5)}).to_csv(
        root / "sample_submission.csv", index=False
    )
    return truth
