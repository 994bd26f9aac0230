"""What sealing sees of external members without running them: their imports, and the record of the try."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lumbar.errors import ManifestError
from lumbar_publish.sealing.members import check_record, check_size, code_of, image_errors

ROOT = Path(__file__).resolve().parents[2]

IMPORTS = [
    ("import pylibjpeg\n", "members/anna/member.py:1: found an import of pylibjpeg, expected what Kaggle's image has"),
    ("def f():\n    from gdcm import Image\n", "found an import of gdcm"),
    ("import importlib\nx = importlib.import_module('monai.nets')\n", ":2: found an import of monai"),
    ("from lumbar_train.recipes import RECIPES\n", "found an import of lumbar_train"),
    ("def f(:\n", "found no Python"),
    ("import torch, timm, numpy as np, scipy, cv2\nfrom lumbar.labels import LEVELS\nfrom .net import Net\n", None),
    ("try:\n    import monai\nexcept ImportError:\n    monai = None\n", None),
    ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import monai\n", None),
]


@pytest.mark.parametrize(("source", "said"), IMPORTS)
def test_what_kaggles_image_lacks_is_named_with_file_and_line(source, said):
    reasons = image_errors(ROOT, {"members/anna/member.py": source.encode(), "members/anna/notes.txt": b"import x"})
    assert [said in reason for reason in reasons] == ([] if said is None else [True])


def test_a_member_that_fails_on_the_sample_is_refused_by_the_try(tmp_path):
    record = tmp_path / "record.json"
    line = "study 7: external member anna left out (KeyError: 'x')"
    record.write_text(json.dumps({"studies": [{"problems": ["study 7: no Axial T2 series"]}]}))
    check_record(record)
    record.write_text(json.dumps({"studies": [{"problems": [line]}]}))
    with pytest.raises(ManifestError, match=r"anna left out \(KeyError: 'x'\), expected an answer to the study"):
        check_record(record)


def test_a_bundle_above_kaggles_size_is_refused(tmp_path):
    check_size({"weights": [{"bytes": 10**11}] * 2}, tmp_path / "m.json")
    with pytest.raises(ManifestError, match=r"m.json: found 200.0 GB of weights, expected at most 200 GB, what Kaggle"):
        check_size({"weights": [{"bytes": 10**11}, {"bytes": 10**11 + 1}]}, tmp_path / "m.json")


def test_code_of_a_member_that_lies_nowhere_names_what_to_do(tmp_path):
    data = {"classifiers": [{"name": "anna", "external": {"files": {"member.py": "0" * 64}}}, {"name": "other"}]}
    with pytest.raises(ManifestError, match=r"members/anna: not found, expected the code of .* with --run RUN"):
        code_of(data, tmp_path)
    assert code_of({}, tmp_path) == {}
