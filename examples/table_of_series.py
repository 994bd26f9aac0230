"""Write the table of series of ROOT/test_images/<study>/<series>/*.dcm: ``python examples/table_of_series.py ROOT``."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from lumbar.dicom import DicomError, read_header


def describe(series: Path) -> str | None:
    """One of the three descriptions that ``predict`` knows, by the first slice; None for anything else."""
    header = read_header(min(series.glob("*.dcm")))
    said = (header.series_description or "").upper()
    normal_axis = int(np.abs(np.cross(*np.reshape(header.image_orientation_patient or (0,) * 6, (2, 3)))).argmax())
    is_t1 = "T1" in said or ("T2" not in said and "STIR" not in said and (header.echo_time or 99.0) < 40.0)
    if normal_axis == 0 and header.image_orientation_patient:
        return "Sagittal T1" if is_t1 else "Sagittal T2/STIR"
    return "Axial T2" if normal_axis == 2 and not is_t1 else None


def main(root: str) -> None:
    """Write ROOT/test_series_descriptions.csv and print each row."""
    rows, folders = [], sorted(path for path in Path(root).glob("test_images/*/*") if any(path.glob("*.dcm")))
    if not folders:
        sys.exit(f"{root}: found no test_images/<study>/<series>/*.dcm in it, expected some")
    for series in folders:
        try:
            description, reason = describe(series), "predict has no use for it"
        except DicomError as error:
            description, reason = None, str(error)
        print(series.parent.name, series.name, description or f"left out: {reason}")
        rows += [(series.parent.name, series.name, description)] if description else []
    table = pd.DataFrame(rows, columns=["study_id", "series_id", "series_description"])
    table.to_csv(Path(root) / "test_series_descriptions.csv", index=False)


if __name__ == "__main__":
    sys.exit(__doc__) if len(sys.argv) != 2 else main(sys.argv[1])
