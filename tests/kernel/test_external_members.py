"""External members in the kernel: what predict may return, what a failure costs, and whose code may run."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
import torch

import lumbar
from kernel_untrained import CONFIGS
from lumbar.bundle.external_code import code_that_may_run, import_member, verify_member
from lumbar.bundle.external_members import load_member
from lumbar.bundle.external_probe import check_member_probe, made_up_study, record_member_probe
from lumbar.bundle.listed_classifiers import check_classifiers
from lumbar.errors import LumbarError, ManifestError
from lumbar.io.regular_file import file_sha256
from lumbar.labels import AXIAL_T2, LEVELS
from lumbar.models import build, name_of
from lumbar.models.inference import Networks
from lumbar.stages.classifiers import AXIAL, SAGITTAL, Classifier, External, crop_config, crop_of
from lumbar.stages.classify import all_levels, classify
from lumbar.stages.external import ExternalMember, checked, crops_of_levels
from stage_studies import localisation_of, study_of

NOTHING = External({}, {}, 1.0)


def member_of(function, conditions=(3, 4), view=AXIAL, crop=(), device="cpu"):
    return ExternalMember(Classifier("anna", view, crop, conditions, NOTHING), None, function, device)


def ones(model, case):
    return torch.ones(2, 5, 3), torch.ones(2, 5, dtype=torch.bool)


def networks_with(member):
    network = build(name_of(CONFIGS["axial_all"]), dataclasses.asdict(CONFIGS["axial_all"])).eval()
    return Networks({"own": [network]}, classifiers=("own", "anna"), external={"anna": member})


def test_its_logits_stand_at_its_conditions_and_all_others_are_masked():
    study = study_of()
    logits, mask = classify(study, localisation_of(study), networks_with(member_of(ones, (4, 0))))
    assert (logits[1][[4, 0]] == 1).all()
    assert mask[1][[4, 0]].all()
    assert not mask[1][[1, 2, 3]].any()
    assert mask[0].any()


def left_by_exit(model, case):
    sys.exit(3)


def that_divides(model, case):
    return 1 / 0


def of_nan(model, case):
    return np.full((2, 5, 3), np.nan), np.ones((2, 5), bool)


def that_writes(model, case):
    case.study.series[AXIAL_T2][0].volume[:] = 0.0


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (that_divides, "ZeroDivisionError: division by zero"),
        (left_by_exit, "SystemExit: 3"),
        (of_nan, "expected finite numbers where the mask is True"),
        (that_writes, "ValueError: assignment destination is read-only"),
    ],
)
def test_one_that_fails_is_masked_on_the_study_with_one_line_and_the_others_go_on(function, said):
    study, problems = study_of(), []
    networks = networks_with(member_of(function))
    place = localisation_of(study)
    before = study.series[AXIAL_T2][0].volume.copy()
    for _ in range(2):  # other readings of the numbering ask again
        logits, mask = classify(study, place, networks, problems=problems)
    assert not mask[1].any()
    assert mask[0].any()
    alone, _ = classify(study, place, networks, names=("own",))
    np.testing.assert_array_equal(logits[0], alone[0])
    (line,) = problems
    assert line.startswith("study 7: external member anna left out (")
    assert said in line
    np.testing.assert_array_equal(study.series[AXIAL_T2][0].volume, before)
    assert study.series[AXIAL_T2][0].volume.flags.writeable


def test_a_lost_gpu_is_the_workers_to_see():
    def lost(model, case):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    study = study_of()
    with pytest.raises(RuntimeError, match="CUDA error"):
        member_of(lost, device="cuda:0").answer(study, localisation_of(study), [], flip=True, all_folds=True)


def test_it_is_not_run_where_it_is_left_out_near_the_deadline():
    study, problems = study_of(), []
    _, mask = classify(
        study,
        localisation_of(study),
        networks_with(member_of(that_divides)),
        skip=frozenset({"anna"}),
        problems=problems,
    )
    assert not mask[1].any()
    assert problems == []


def test_what_it_sets_in_torch_is_taken_back():
    def loud(model, case):
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(3)
        torch.set_default_device("meta")
        return np.ones((2, 5, 3)), np.ones((2, 5), bool)

    study, n_threads = study_of(), torch.get_num_threads()
    member_of(loud).logits(study, localisation_of(study), flip=True, all_folds=True)
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_num_threads() == n_threads
    assert torch.zeros(1).device.type == "cpu"


@pytest.mark.parametrize("name", ["axial_all", "sagittal_classifier"])
@pytest.mark.parametrize("per_series", [False, True])
def test_its_crops_are_those_that_the_kits_own_classifier_is_given(name, per_series):
    config = dataclasses.replace(CONFIGS[name], per_series=per_series)
    network = build(name_of(config), dataclasses.asdict(config)).eval()
    study = study_of()
    place = localisation_of(study)
    seen = []

    def look(model, case):
        seen.extend(case.crops)
        return np.zeros((2, 5, 3)), np.zeros((2, 5), bool)

    view = AXIAL if name == "axial_all" else SAGITTAL
    member_of(look, view=view, crop=crop_of(config)).logits(study, place, flip=True, all_folds=True)
    own = all_levels(study, place, network, None if not per_series else _first_look(place, view))
    torch.testing.assert_close(seen[0].images, own.images, atol=0, rtol=0)
    torch.testing.assert_close(seen[0].position_mm, own.position_mm, atol=0, rtol=0)
    assert bool(seen[0].mask.any())


def _first_look(place, view):
    from lumbar.stages.classify import series_pairs

    return place.axial_series()[0] if view == AXIAL else series_pairs(place)[0]


def test_without_any_series_to_look_at_there_are_no_crops():
    study = study_of()
    place = dataclasses.replace(localisation_of(study), axial_levels=[])
    study.series[AXIAL_T2] = []
    assert crops_of_levels(study, place, crop_config(AXIAL, {"size": 32, "per_series": True})) == ()
    assert crops_of_levels(study, place, crop_config(AXIAL, {"size": 32})) == ()


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, "found NoneType returned, expected two: logits and mask"),
        ((1, 2, 3), "found 3 values returned"),
        ((np.zeros((2, 5)), np.ones((2, 5), bool)), r"found logits float64 \(2, 5\), expected numbers \(2, 5, 3\)"),
        ((np.zeros((3, 5, 3)), np.ones((2, 5), bool)), r"found logits float64 \(3, 5, 3\)"),
        (([[1, 2], [3]], np.ones((2, 5), bool)), "found logits object"),
        ((np.full((2, 5, 3), "x"), np.ones((2, 5), bool)), "found logits <U1"),
        ((np.zeros((2, 5, 3), complex), np.ones((2, 5), bool)), "found logits complex128"),
        ((np.zeros((2, 5, 3)), np.ones((2, 5))), r"found a mask float64 \(2, 5\), expected bool \(2, 5\)"),
        ((np.zeros((2, 5, 3)), np.ones((5, 2), bool)), r"found a mask bool \(5, 2\)"),
        ((np.full((2, 5, 3), 1e300), np.ones((2, 5), bool)), "of condition 0 at l1_l2, expected finite"),
    ],
)
def test_what_predict_may_not_return_is_named(returned, said):
    with pytest.raises(ManifestError, match=said):
        checked(returned, 2)


def test_values_under_the_mask_alone_count():
    logits = torch.full((2, 5, 3), float("nan"), dtype=torch.bfloat16)
    logits[0] = 2
    values, mask = checked((logits, torch.tensor([[True] * 5, [False] * 5])), 2)
    assert (values[0] == 2).all()
    assert mask.sum() == 5


CODE = {
    "member.py": b"from .nets.small import VALUE\nfrom . import more\ndef load(folder, device):\n"
    b"    return (folder / 'about.txt').read_text() + (folder / 'w.safetensors').name\n"
    b"def predict(model, case): return VALUE, more.VALUE\n",
    "nets/small.py": b"VALUE = 1\n",
    "more.py": b"VALUE = 2\n",
    "about.txt": b"hello ",
}


def write_code(folder, code=CODE):
    for place, content in code.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(content)
    return External({place: file_sha256(folder / place) for place in code}, {}, 1.0)


def test_a_member_of_several_files_is_made_from_the_bytes_that_were_read(tmp_path):
    from safetensors.numpy import save_file

    folder = tmp_path / "members/anna"
    external = write_code(folder)
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "flat.safetensors")
    (folder / "more.py").write_text("VALUE = 9\n")  # after it was read
    before = list(sys.path)
    listed = Classifier("anna", AXIAL, (), (0,), external)
    member = load_member(listed, folder, CODE, {"w.safetensors": tmp_path / "flat.safetensors"}, "cpu")
    assert member._model == "hello w.safetensors"
    assert member._function(None, None) == (1, 2)
    assert sys.path == before
    assert not any(folder.rglob("__pycache__"))


def test_two_members_of_one_name_do_not_mix(tmp_path):
    other = CODE | {"more.py": b"VALUE = 5\n"}
    modules = [import_member("anna", tmp_path, code) for code in (CODE, other, CODE)]
    assert [module.predict(None, None) for module in modules] == [(1, 2), (1, 5), (1, 2)]


def test_code_runs_from_the_package_that_runs_or_where_the_bundle_is_trusted(tmp_path, monkeypatch):
    external = write_code(tmp_path / "members/anna")
    with pytest.raises(ManifestError, match="found code of external member anna, which runs only where it is trusted"):
        code_that_may_run(tmp_path, "anna", external, is_trusted=False)
    assert code_that_may_run(tmp_path, "anna", external, is_trusted=True)[1] == CODE
    monkeypatch.setattr(lumbar, "__file__", str(tmp_path / "__init__.py"))  # as on Kaggle
    assert code_that_may_run(tmp_path / "elsewhere", "anna", external, is_trusted=False)[1] == CODE
    (tmp_path / "members/anna/more.py").write_text("VALUE = 3\n")
    with pytest.raises(ManifestError, match=r"more.py: found sha256 .*, expected .* as sealed"):
        code_that_may_run(tmp_path / "elsewhere", "anna", external, is_trusted=False)
    with pytest.raises(ManifestError, match="as sealed"):
        verify_member(tmp_path, "anna", external)


def test_the_probe_tells_another_answer_and_the_made_up_study_shows_every_level(tmp_path):
    study, place = made_up_study(3)
    for view, name in ((AXIAL, "axial_all"), (SAGITTAL, "sagittal_classifier")):
        (crops,) = crops_of_levels(study, place, crop_config(view, {"size": 32, "window": 3}))
        assert crops.mask.flatten(1).any(dim=1).all(), name
        assert crops.images.std() > 0.05
    probe = record_member_probe(member_of(ones))
    check_member_probe(member_of(ones), probe, "anna")

    def others(model, case):
        return torch.full((2, 5, 3), 1.5), torch.ones(2, 5, dtype=torch.bool)

    with pytest.raises(ManifestError, match=r"anna: probe gave 1\.5000, expected 1\.0000: code or library versions"):
        check_member_probe(member_of(others), probe, "anna")


LISTED = {
    "name": "anna",
    "view": "axial",
    "crop": {},
    "conditions": [3],
    "external": {
        "files": {"member.py": "0" * 64},
        "probe": {"seed": 0, "expected": [0.5], "tolerance": 0.02},
        "seconds": 1.0,
    },
}
WEIGHTS = {
    "file": "weights/anna.0.safetensors",
    "stage": "anna",
    "model": "external",
    "config": {"name": "w.safetensors"},
}


def listed(**changes):
    return LISTED | {"external": LISTED["external"] | changes}


@pytest.mark.parametrize(
    ("entry", "weights", "said"),
    [
        (listed(files={}), WEIGHTS, "found 0 files, member.py not among them"),
        (
            listed(files={"member.py": "0" * 64, "../x.py": "0" * 64}),
            WEIGHTS,
            r"files: found '../x.py', expected a file",
        ),
        (listed(files={"member.py": "0" * 64, "x.so": "0" * 64}), WEIGHTS, "files: found 'x.so', expected a file"),
        (listed(files={"member.py": "no hash"}), WEIGHTS, "found 'no hash', expected 64 hexadecimal digits"),
        (listed(probe={"seed": 0}), WEIGHTS, "probe: found no expected, expected seed"),
        (listed(seconds=-1), WEIGHTS, "seconds: found -1"),
        (LISTED | {"external": 1}, WEIGHTS, "external: found 1, expected an object"),
        (LISTED | {"crop": {"sise": 1}}, WEIGHTS, "crop: found 'sise', expected of size"),
        (LISTED, WEIGHTS | {"model": "axial_classifier"}, "found model 'axial_classifier', expected external for anna"),
        (LISTED, WEIGHTS | {"config": {"name": "../w"}}, "config.name: found '../w', expected the name of a"),
        (LISTED, WEIGHTS | {"stage": "bob"}, "found no weights of anna"),
        ({key: LISTED[key] for key in ("name", "view", "crop", "conditions")}, WEIGHTS, "found model 'external'"),
    ],
)
def test_an_entry_of_the_manifest_that_cannot_be_is_refused(tmp_path, entry, weights, said):
    with pytest.raises(LumbarError, match=said) as refused:
        check_classifiers(tmp_path / "m.json", {"classifiers": [entry], "weights": [weights]})
    assert "\n" not in str(refused.value)


def test_code_that_is_not_among_the_sealed_files_is_refused(tmp_path):
    data = {"classifiers": [LISTED], "weights": [WEIGHTS]}
    check_classifiers(tmp_path / "m.json", data)
    check_classifiers(tmp_path / "m.json", data | {"code_files": {"members/anna/member.py": "0" * 64}})
    with pytest.raises(ManifestError, match=r"code_files: found no members/anna/member.py of the listed sha256"):
        check_classifiers(tmp_path / "m.json", data | {"code_files": {"run.py": "0" * 64}})


def test_every_level_has_its_points_on_the_made_up_study():
    _, place = made_up_study(0)
    assert set(place.levels_mm) == set(LEVELS)
    assert [place.axial(level) is not None for level in LEVELS] == [True] * 5
