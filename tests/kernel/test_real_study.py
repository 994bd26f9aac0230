"""One real examination, where it lies beside the project."""

import re
from pathlib import Path

import pytest

from kernel_untrained import write_untrained_bundle
from lumbar.labels import row_ids
from lumbar.output.submission import validate
from lumbar.run import predict

REAL = Path(__file__).resolve().parents[3] / "shared" / "real" / "lumbar_cc0"

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL}: not here, expected the real CC0 study"),
]


def test_a_real_study_gives_25_valid_rows_with_pictures_and_no_identity(tmp_path):
    bundle = write_untrained_bundle(tmp_path / "bundle")
    out, report = tmp_path / "s.csv", tmp_path / "report.html"
    _, record = predict(REAL, bundle, out, report=report)
    assert len(validate(out, row_ids(20180105))) == 25
    assert record["studies"][0]["status"] == "predicted"
    assert {p["series_id"] for p in record["studies"][0]["sagittal_points"]} <= {
        path.name for path in (REAL / "test_images" / "20180105").iterdir()
    }
    html = report.read_text()
    assert re.search(r"data:image/(png|jpeg);base64,", html)
    assert not re.search(r"patient'?s? ?(name|id|birth)", html, re.IGNORECASE)
