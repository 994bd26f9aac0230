"""Public names are where users look for them, and cost nothing until they are used."""

import subprocess
import sys

import pytest

import lumbar


def test_the_package_offers_predict_and_score():
    from lumbar import metric, run

    assert lumbar.predict is run.predict
    assert lumbar.score is metric.score
    assert set(lumbar.__all__) <= set(dir(lumbar))


def test_dicom_offers_its_readers_and_the_types_that_they_return_and_raise():
    from lumbar import dicom, errors

    readers = {name for name in dicom.__all__ if name.startswith("read_")}
    assert readers == {"read_header", "read_series", "read_slice"}
    returned = {getattr(dicom, name).__annotations__["return"] for name in readers}
    assert returned | {"Stack", "DicomError", "warm_up"} | readers == set(dicom.__all__)  # a series holds stacks
    assert dicom.DicomError is errors.DicomError
    assert [name for name in dicom.__all__ if not hasattr(dicom, name)] == []


def test_an_unknown_name_is_refused_as_python_does():
    with pytest.raises(AttributeError, match="no attribute 'prediction'"):
        lumbar.prediction  # noqa: B018


def test_importing_the_package_loads_nothing_heavy(tmp_path):
    heavy = "{'torch', 'numba', 'pandas', 'numpy', 'timm', 'cv2', 'pydicom'}"
    code = f"import sys, lumbar; loaded = {heavy} & set(sys.modules); assert not loaded, loaded"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
