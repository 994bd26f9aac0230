"""A team mate's folder joins an ensemble: the example of docs/add-a-model.md from training to the sealed answer."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import lumbar
from kernel_untrained import CONFIGS
from lumbar.bundle.manifest import read_manifest, verify
from lumbar.bundle.weights import load_networks
from lumbar.config import CLASSIFIERS
from lumbar.errors import LumbarError, ManifestError
from lumbar.labels import CONDITIONS
from lumbar.metric import align_submission
from lumbar.run import predict
from lumbar.stages.aggregate import aggregate, level_confidence, prior_array
from lumbar.stages.classifiers import crop_config
from lumbar.stages.classify import classify
from lumbar.stages.external import Case, crops_of_levels
from lumbar.stages.localise import localise
from lumbar.study import read_study
from lumbar_publish.names import DatasetId, Layout
from lumbar_publish.sealing import members as sealing_members
from lumbar_publish.sealing.completeness import completeness_errors
from lumbar_publish.sealing.seal import seal
from lumbar_train.__main__ import main
from lumbar_train.data.tables import Cohort, read_cohort
from lumbar_train.ensemble.build import build_ensemble
from lumbar_train.ensemble.export import joined
from lumbar_train.ensemble.external import read_external, read_externals
from lumbar_train.ensemble.members import Source, gather
from lumbar_train.errors import LeakError
from lumbar_train.outputs.store import logits_frame, read_logits, write_frame
from train_chain_runs import write_chain_run

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "external_member"
NAMES = (*(f"a_{name}" for name in CLASSIFIERS), "anna")


@pytest.fixture(scope="module")
def cohort(pristine_root: Path) -> Cohort:
    return read_cohort(pristine_root, progress=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory, cohort) -> Path:
    return write_chain_run(tmp_path_factory.mktemp("runs") / "a", cohort, CONFIGS, 1)


@pytest.fixture(scope="module")
def handed(tmp_path_factory, run, pristine_root) -> Path:
    """The example's folder after the team mate's own training, of one epoch."""
    folder = Path(shutil.copytree(EXAMPLE / "anna", tmp_path_factory.mktemp("handed") / "anna"))
    spec = importlib.util.spec_from_file_location("fit_of_the_example", EXAMPLE / "fit.py")
    fit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fit)
    before = list(sys.path)
    fit.main(str(run), str(pristine_root), str(folder), "1")
    sys.path[:] = before
    return folder


@pytest.fixture(scope="module")
def made(run, handed, pristine_root, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("ens") / "ENS"
    command = ["ensemble", "--runs", str(run), "--external", str(handed), "--data", str(pristine_root)]
    with pytest.MonkeyPatch.context() as patch:  # of any ensemble, and slow
        patch.setattr("lumbar_train.report.report_on", lambda *_: (out, None))
        patch.setattr("lumbar_train.ensemble.page.write_page", lambda *_: out)
        assert main([*command, "--out", str(out), "--select", "all"]) == 0
    return out


@pytest.fixture(scope="module")
def layout(tmp_path_factory) -> Layout:
    """A repository of its own with the real kernel, to seal in."""
    root = tmp_path_factory.mktemp("repo")
    shutil.copytree(ROOT / "kernel/lumbar", root / "kernel/lumbar", ignore=shutil.ignore_patterns("__pycache__"))
    for file in ROOT.glob("constraints-kaggle*.txt"):
        shutil.copy(file, root)
    return Layout(root)


@pytest.fixture(scope="module")
def sealed(layout, made) -> Path:
    return seal(layout, run=made, dataset=DatasetId("someone", "lumbar-kit")).folder


def test_the_page_shows_what_the_example_holds():
    page = (ROOT / "docs/add-a-model.md").read_text()
    shown = [
        part.split("```", 1)[0].split("\n", 1)[1] for part in page.split("```json")[1:] + page.split("```python")[1:]
    ]
    files = [(EXAMPLE / "anna" / name).read_text() for name in ("member.json", "member.py")]
    assert len(shown) == len(files)
    assert [block in file for block, file in zip(shown, files, strict=True)] == [True, True]


def test_the_bundle_lists_the_member_with_its_code_its_probe_and_its_weights(made, handed):
    manifest = verify(made / "export")
    assert tuple(one.name for one in manifest.classifiers) == NAMES
    one = manifest.classifiers[-1]
    assert one.conditions == (3, 4)
    assert dict(one.crop)["size"] == 96
    assert set(one.external.files) == {"member.py", "net.py"}
    assert len(one.external.probe["expected"]) > 10
    assert completeness_errors(manifest.data, made) == []
    notes = json.loads((made / "ensemble.json").read_text())
    assert notes["members"][-1]["classifier"] == "external"
    assert notes["members"][-1]["cost"] > 0
    assert (made / "export/members/anna/net.py").read_bytes() == (handed / "net.py").read_bytes()


def test_the_sealed_answer_is_that_of_the_members_stored_logits(sealed, run, made, handed, cohort, tmp_path):
    """The member's logits by its own folder, stored as its table stores them, on the localisation that ships."""
    study_id = int(cohort.study_ids[0])
    frame, record = predict(
        cohort.root, sealed, split="train", studies=[study_id], workers=1, processes=False, trust_members=True,
        time_limit="none",
    )  # fmt: skip
    assert not [line for line in record["studies"][0]["problems"] if "external" in line]
    networks = load_networks(run / "export", verify(run / "export"))
    study = read_study(cohort.root, "train", study_id, cohort.series, workers=1)
    place = localise(study, networks)
    logits, mask = classify(study, place, networks)
    theirs = sys.modules["anna.member"]  # as its own training imported it
    crops = crops_of_levels(
        study, place, crop_config("axial", json.loads((handed / "member.json").read_text())["crop"])
    )
    with torch.inference_mode():
        values, shown = theirs.predict(theirs.load(handed, "cpu"), Case(study, place, crops, "cpu", True, True))
    assert shown.any()
    own, rests = np.zeros((5, 5, 3), np.float32), np.zeros((5, 5), bool)
    own[[3, 4]], rests[[3, 4]] = values.numpy(), shown.numpy()
    write_frame(tmp_path / "oof.parquet", logits_frame({study_id: own}, {study_id: rests}, {study_id: 0}))
    stored, seen = read_logits(tmp_path / "oof.parquet", [study_id])
    manifest = verify(sealed)
    last = load_networks(made / "export", replace(verify(made / "export"), trusts_members=True)).stage("aggregator")
    both, shown_by = np.concatenate([logits, stored]), np.concatenate([mask, seen])
    expected = aggregate(both, shown_by, prior_array(manifest.prior), last, level_confidence(place))
    np.testing.assert_allclose(align_submission(frame, [study_id])[0], expected, atol=1e-5)


def test_at_home_its_code_runs_only_where_it_is_trusted(sealed, cohort):
    with pytest.raises(LumbarError, match=r"found code of external member anna, .* expected --trust-members"):
        predict(cohort.root, sealed, split="train", studies=1, workers=1, processes=False)


def first_cell(layout: Layout, bundle: Path, root: Path) -> subprocess.CompletedProcess[str]:
    """The notebook's first cell, over a bundle and an empty competition."""
    inputs = root / "kaggle/input"
    (inputs / "competitions/rsna-2024-lumbar-spine-degenerative-classification").mkdir(parents=True)
    (inputs / "datasets/someone").mkdir(parents=True)
    (inputs / "datasets/someone/lumbar-kit").symlink_to(bundle)
    source = "".join(json.loads(layout.notebook.read_text())["cells"][1]["source"])
    environment = {"LUMBAR_KAGGLE_ROOT": str(root / "kaggle")}
    return subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, text=True, check=False)


def test_a_changed_byte_of_its_code_is_refused_by_the_kernel_and_by_the_notebook(layout, sealed, tmp_path):
    assert first_cell(layout, sealed, tmp_path / "as-sealed").returncode == 0
    bundle = Path(shutil.copytree(sealed, tmp_path / "bundle"))
    code = bundle / "code/lumbar/members/anna/net.py"
    code.write_bytes(code.read_bytes().replace(b"16", b"17", 1))
    with pytest.raises(ManifestError, match=r"found code hash .* .changed members/anna/net.py"):
        verify(bundle)
    done = first_cell(layout, bundle, tmp_path / "changed")
    assert done.returncode == 1
    assert "members/anna/net.py" in done.stderr
    assert done.stderr.count("\n") == 1


def test_sealing_again_from_the_lock_file_gives_the_same_bundle(layout, sealed):
    before = read_manifest(sealed).hash
    assert seal(layout).manifest_hash == before
    with pytest.raises(ManifestError, match="found external members, expected networks of the kit alone for --demo"):
        seal(layout, as_demo=True)


def test_an_ensemble_with_a_member_from_elsewhere_joins_another_one(made, run, pristine_root, tmp_path):
    out = tmp_path / "AGAIN"
    build_ensemble({"e": made, "b": run}, pristine_root, out, how="all")
    manifest = verify(out / "export")
    assert manifest.classifiers[3].name == "e_anna"
    assert manifest.classifiers[3].external == verify(made / "export").classifiers[-1].external
    trusted = replace(manifest, trusts_members=True)
    assert set(load_networks(out / "export", trusted).external) == {"e_anna"}


def spoiled(handed: Path, folder: Path, **changes) -> Path:
    """A copy of the folder; ``changes`` of its ``member.json``, None takes a field away."""
    copy = Path(shutil.copytree(handed, folder / "anna"))
    about = json.loads((copy / "member.json").read_text()) | changes
    (copy / "member.json").write_text(json.dumps({key: value for key, value in about.items() if value is not None}))
    return copy


def table(change):
    def spoil(folder: Path) -> None:
        frame = pd.read_parquet(folder / "oof.parquet")
        change(frame).to_parquet(folder / "oof.parquet", index=False)

    return spoil


def _set(frame, column, value):
    frame = frame.copy()
    frame.loc[frame["study_id"] == frame["study_id"].iloc[0], column] = value
    return frame


OTHER = {0: 1, 1: 0}
TABLES = [
    (lambda f: _set(f, "fold", OTHER[f["fold"].iloc[0]]), LeakError, r"oof.parquet: found study \d+ in fold"),
    (lambda f: f.assign(fold=-1), LeakError, "in fold -1"),
    (lambda f: pd.concat([f, f[:1]]), LumbarError, "twice, expected once"),
    (lambda f: _set(f, "logit_severe", np.inf), LumbarError, "that are no numbers"),
    (lambda f: _set(f, "study_id", 999), LumbarError, r"found study 999 \(1 such\), expected studies of"),
    (lambda f: _set(f, "condition", "spinal_canal_stenosis"), LumbarError, "found condition 'spinal_canal_stenosis'"),
    (lambda f: _set(f, "level", "L4/L5"), LumbarError, "found level 'L4/L5', expected of l1_l2"),
    (lambda f: f.drop(columns="logit_moderate"), LumbarError, "found no column logit_moderate, expected study_id"),
    (lambda f: f.assign(study_id=f["study_id"].astype(str)), LumbarError, "found study_id of type"),
    (lambda f: f.assign(fold=f["fold"] + 0.5), LumbarError, "found fold of type float64, expected whole numbers"),
    (lambda f: f[f["condition"] == CONDITIONS[3]], LumbarError, f"found no row of {CONDITIONS[4]}, expected some"),
    (lambda f: f[:0], LumbarError, "found no row of"),
]


@pytest.mark.parametrize(("change", "kind", "said"), TABLES)
def test_logits_that_leak_or_are_not_what_the_table_says_are_refused(handed, run, cohort, tmp_path, change, kind, said):
    folder = spoiled(handed, tmp_path)
    table(change)(folder)
    with pytest.raises(kind, match=said) as refused:
        gather({"a": run}, cohort, {"anna": read_external(folder)})
    assert "\n" not in str(refused.value)


def test_columns_may_stand_in_any_order_and_a_study_without_rows_is_masked_and_counted(handed, run, cohort, tmp_path):
    whole = gather({"a": run}, cohort, {"anna": read_external(handed)})
    assert whole.left_out == {}
    folder = spoiled(handed, tmp_path)
    gone = int(cohort.study_ids[2])
    table(lambda f: f[f["study_id"] != gone][list(f.columns[::-1])].assign(note="x"))(folder)
    candidates = gather({"a": run}, cohort, {"anna": read_external(folder)})
    assert candidates.left_out == {"anna": 1}
    row = candidates.cohort.study_ids.tolist().index(gone)
    assert not candidates.members.mask[row, -1].any()
    rest = np.arange(len(whole.members)) != row
    np.testing.assert_array_equal(candidates.members.logits[rest], whole.members.logits[rest])


FOLDERS = [
    ({"view": "coronal"}, None, "member.json: view: found 'coronal', expected 'sagittal' or 'axial'"),
    ({"conditions": ["stenosis"]}, None, r"conditions: found \['stenosis'\], expected 1 to 5 different values"),
    ({"seconds": None}, None, "member.json: found no seconds, expected name, view, conditions, seconds"),
    ({"seconds": 0}, None, "seconds: found 0, expected a number above 0"),
    ({"sise": 3}, None, "member.json: found 'sise', expected of name, view"),
    ({"crop": {"size": 96, "crop_scale": 1.0}}, None, "crop: found 'crop_scale', expected of size, window, box_scale"),
    ({"crop": {"size": -1}}, None, "size: found -1, expected"),
    ({"name": "Anna!"}, None, "name: found 'Anna!', expected a name of small letters"),
    ({"name": "aggregator"}, None, "name: found aggregator, expected a name that no other stage has"),
    ({"name": "fusion"}, None, "name: found fusion, a folder of runs, expected another name"),
    ({"name": "export"}, None, "name: found export, a folder of runs, expected another name"),
    ({}, ("member.json", "{"), "member.json: not readable as JSON"),
    ({}, ("member.json", None), "member.json: not found, expected name"),
    ({}, ("member.py", None), "member.py: not found, expected a module with load and predict"),
    ({}, ("net.safetensors", None), "found no .safetensors file, expected the weights"),
    ({}, ("net.safetensors", "PK torch.save"), "net.safetensors: not readable as safetensors"),
    ({}, ("net.pth", "PK"), "net.pth: found 'net.pth', expected weights as .safetensors, code as .py"),
    ({}, ("old/net.safetensors", "x"), r"expected the name of a .safetensors file .*, beside member.json"),
    ({}, ("oof.parquet", "no table"), "oof.parquet: not readable as parquet"),
    ({}, ("oof.parquet", None), "oof.parquet: not found, expected out-of-fold logits: study_id, fold"),
    ({"cohort": "0" * 64}, None, "member.json: found cohort 000000000000, expected"),
]


@pytest.mark.parametrize(("changes", "file", "said"), FOLDERS)
def test_a_folder_that_is_not_what_it_should_be_is_refused_in_one_line(
    handed, run, cohort, tmp_path, changes, file, said
):
    folder = spoiled(handed, tmp_path, **changes)
    if file is not None:
        name, content = file
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_text(content)
    with pytest.raises(LumbarError, match=said) as refused:
        gather({"a": run}, cohort, {"anna": read_external(folder)})
    assert "\n" not in str(refused.value)


LOADS = "import numpy as np; load = lambda folder, device: None\n"
ALL, ZEROS = "np.ones((2, 5), bool)", "np.zeros((2, 5, 3))"
WRONG = r"float64 \(5, 5, 3\), expected .*2, 5, 3"
CODE = [
    ("import torch\n1 / 0\n", r"member.py: cannot be imported \(ZeroDivisionError: division by zero at member.py:2\)"),
    ("import pylibjpeg_of_nobody\n", "No module named 'pylibjpeg_of_nobody'"),
    ("import net\n", "net lies beside it: write from .net import"),
    ("raise SystemExit(0)\n", r"cannot be imported \(SystemExit: 0 at member.py:1\)"),
    ("load = 1\n", "found no function load, expected load and predict"),
    ("def load(f, d): f.x\ndef predict(m, c): pass\n", "anna: load: raised AttributeError: .* at member.py:1"),
    ("LOADS def predict(m, c): raise KeyError('x')\n", "external member anna: raised KeyError: 'x' at member.py:2"),
    ("LOADS def predict(m, c): pass\n", "external member anna: predict: found NoneType returned, expected two"),
    ("LOADS def predict(m, c): return np.zeros((5, 5, 3)), np.ones((5, 5), bool)\n", WRONG),
    ("LOADS def predict(m, c): return ZEROS, np.ones((2, 5))\n", "found a mask float64 .*expected bool"),
    ("LOADS def predict(m, c): return ZEROS * np.nan, ALL\n", "expected finite numbers where"),
    ("LOADS def predict(m, c): return np.random.rand(2, 5, 3), ALL\n", "second answer to one study has"),
    ("LOADS def predict(m, c): c.study.series['Axial T2'][0].volume[:] = 0\n", "destination is read-only"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "said"), CODE)
def test_code_that_fails_on_the_made_up_study_is_refused_before_anything_is_written(handed, tmp_path, source, said):
    folder = spoiled(handed, tmp_path)
    source = source.replace("LOADS ", LOADS).replace("ZEROS", ZEROS).replace("ALL", ALL)
    (folder / "member.py").write_text(source)
    with pytest.raises(ManifestError, match=said) as refused:
        joined(Source("anna", "anna", folder, ""), read_external(folder))
    assert "\n" not in str(refused.value)


def test_two_of_one_name_are_refused_and_another_name_helps(handed, run, pristine_root, tmp_path, capsys):
    other = spoiled(handed, tmp_path)
    with pytest.raises(LumbarError, match=r"--external: found .* named anna, which .* has, expected different names"):
        read_externals([("", handed), ("", other)], [])
    assert list(read_externals([("", handed), ("bob", other)], ["a"])) == ["anna", "bob"]
    command = ["ensemble", "--runs", f"anna={run}", "--data", str(pristine_root), "--out", str(tmp_path / "ENS")]
    for more, said in (
        (["--external", str(handed)], "named anna, which a run has, expected different names; give NAME="),
        (["--external", str(tmp_path / "nobody")], "nobody: no such folder, expected an external member"),
        ([], "--runs: found 1, expected 2 or more"),
    ):
        assert main([*command, *more]) == 1
        errors = capsys.readouterr().err
        assert said in errors
        assert errors.count("\n") == 1
    assert not (tmp_path / "ENS").exists()


def test_sealing_refuses_such_an_import_and_a_bundle_above_kaggles_size_and_writes_nothing(
    layout, made, tmp_path, monkeypatch
):
    run = Path(shutil.copytree(made, tmp_path / "run"))
    monkeypatch.setattr(sealing_members, "image_names", lambda root: {"torch"})
    before = sorted(os.listdir(layout.root))
    with pytest.raises(
        ManifestError, match=r"member.py:8: found an import of safetensors, .*--force seals it"
    ) as refused:
        seal(layout, run=run)
    assert "\n" not in str(refused.value)
    monkeypatch.undo()
    monkeypatch.setattr(sealing_members, "MAX_BYTES", 1000)
    with pytest.raises(ManifestError, match=r"GB of weights, expected at most .* GB, what Kaggle takes for a dataset"):
        seal(layout, run=run)
    monkeypatch.undo()
    (run / "export/members/anna/net.py").write_text("")
    with pytest.raises(ManifestError, match=r"members/anna/net.py: found sha256 .*, expected .* as sealed"):
        seal(layout, run=run)
    assert sorted(os.listdir(layout.root)) == before


def test_the_package_at_home_is_the_sealed_one_though_it_lacks_the_members_code(sealed):
    from lumbar.bundle.code_hash import code_mismatch

    data = verify(sealed).data
    assert Path(lumbar.__file__).parent == ROOT / "kernel/lumbar"
    assert code_mismatch(data["code_sha256"], data["code_files"]) == ""
    assert code_mismatch(data["code_sha256"], data["code_files"] | {"run.py": "0" * 64}) != ""
