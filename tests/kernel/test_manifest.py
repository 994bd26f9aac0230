import hashlib
import json

import pytest

from kernel_bundles import manifest_data, write_bundle
from lumbar.bundle.manifest import manifest_hash, read_manifest, verify, write_manifest
from lumbar.errors import ManifestError
from lumbar.labels import COLUMNS


def rewrite(folder, change):
    path = folder / "weights_manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return folder


def test_a_good_bundle_is_verified_and_read(tmp_path):
    manifest = verify(write_bundle(tmp_path))
    assert manifest.recipe == "demo"
    assert manifest.prior[COLUMNS[0]] == (0.6, 0.3, 0.1)
    assert [entry.file for entry in manifest.of_stage("sagittal_xy")] == [
        "weights/a.safetensors",
        "weights/b.safetensors",
    ]
    assert manifest.of_stage("aggregator") == []
    assert manifest.path(manifest.weights[0]) == tmp_path / "weights/a.safetensors"
    content = (tmp_path / "weights_manifest.json").read_bytes()
    assert manifest.hash == manifest_hash(tmp_path) == hashlib.sha256(content).hexdigest()


def test_weights_unpacked_without_their_folder_are_found(tmp_path):
    write_bundle(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"weights/{name}.safetensors").rename(tmp_path / f"{name}.safetensors")
    manifest = verify(tmp_path)
    assert manifest.path(manifest.weights[0]) == tmp_path / "a.safetensors"


def test_one_changed_byte_is_found(tmp_path):
    write_bundle(tmp_path)
    (tmp_path / "weights/a.safetensors").write_bytes(b"some weightz")
    with pytest.raises(ManifestError, match=r"weights/a\.safetensors: found sha256 \w{12}…, expected \w{12}…$"):
        verify(tmp_path)


def test_a_shortened_file_is_found(tmp_path):
    write_bundle(tmp_path)
    (tmp_path / "weights/a.safetensors").write_bytes(b"some")
    with pytest.raises(ManifestError, match=r"weights/a\.safetensors: found 4 bytes, expected 12$"):
        verify(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    write_bundle(tmp_path)
    (tmp_path / "weights/b.safetensors").unlink()
    with pytest.raises(
        ManifestError, match=r"weights/b\.safetensors: not found, expected the sagittal_xy weights that"
    ):
        verify(tmp_path)


def test_another_version_of_the_bundle_is_refused(tmp_path):
    write_bundle(tmp_path)
    verify(tmp_path, manifest_hash(tmp_path))
    with pytest.raises(
        ManifestError, match=r"found manifest \w{12}…, expected a{12}…: another version of dataset owner/"
    ):
        verify(tmp_path, "a" * 64)


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(ManifestError, match=r"weights_manifest\.json: cannot be read \(No such file or directory\)"):
        verify(tmp_path)
    with pytest.raises(ManifestError, match=r"cannot be read \(No such file or directory\)"):
        manifest_hash(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", "weights", '{"schema": 1'])
def test_a_manifest_that_is_no_json_is_refused(tmp_path, text):
    (tmp_path / "weights_manifest.json").write_text(text)
    with pytest.raises(ManifestError, match=r"weights_manifest\.json: not JSON \(.*\), expected a weights manifest"):
        verify(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema=2), "found schema 2, expected 1"),
        (lambda d: d.pop("cohort"), "cohort missing, expected schema, dataset"),
        (lambda d: d.update(recipe=3), "recipe: found int, expected str"),
        (lambda d: d["weights"].append("x"), r"weights\[2\]: found str, expected an object"),
        (lambda d: d["weights"][1].pop("config"), r"weights\[1\]\.config missing, expected file, sha256"),
        (lambda d: d["weights"][0].update(bytes="12"), r"weights\[0\]\.bytes: found str, expected int"),
        (lambda d: d["weights"][0].update(fold=True), r"weights\[0\]\.fold: found bool, expected int"),
        (
            lambda d: d["weights"][0].update(file="../a.safetensors"),
            r"found '../a\.safetensors', expected a \.safetens",
        ),
        (lambda d: d["weights"][0].update(file="/a.safetensors"), r"found '/a\.safetensors', expected a \.safetensors"),
        (lambda d: d["weights"][0].update(file="weights/a.pt"), r"found 'weights/a\.pt', expected a \.safetensors"),
        (lambda d: d["weights"].append(d["weights"][0]), r"weights/a\.safetensors is listed twice, expected once"),
        (lambda d: d["prior"].pop(COLUMNS[2]), "prior of spinal_canal_stenosis_l3_l4 missing, expected the 25"),
        (lambda d: d["prior"].update({COLUMNS[2]: [0.5, 0.5]}), r"found \[0\.5, 0\.5\], expected 3 probabilities"),
        (lambda d: d["prior"].update({COLUMNS[2]: [0.5, 0.5, 0.5]}), "expected 3 probabilities that sum to 1"),
        (lambda d: d["prior"].update({COLUMNS[2]: None}), "found None, expected 3 probabilities that sum to 1"),
    ],
)
def test_a_manifest_that_is_not_one_is_refused_by_name(tmp_path, change, message):
    with pytest.raises(ManifestError, match=message) as caught:
        verify(rewrite(write_bundle(tmp_path), change))
    assert "\n" not in str(caught.value)


def test_a_list_is_no_manifest(tmp_path):
    (tmp_path / "weights_manifest.json").write_text("[]")
    with pytest.raises(ManifestError, match="found list, expected an object with schema"):
        read_manifest(tmp_path)


def test_a_manifest_says_in_words_what_its_weights_were_made_from(tmp_path):
    cohort = {"fingerprint": "0" * 64, "studies": 40, "description": "synthetic"}
    write_manifest(tmp_path / "weights_manifest.json", manifest_data({}, recipe="demo", cohort=cohort))
    assert read_manifest(tmp_path).origin == "recipe demo, trained on 40 studies (synthetic)"


def test_writing_is_canonical_and_reading_gives_it_back(tmp_path):
    data = manifest_data({"weights/a.safetensors": b"a"})
    write_manifest(tmp_path / "weights_manifest.json", data)
    write_manifest(tmp_path / "other.json", dict(reversed(data.items())))
    first = (tmp_path / "weights_manifest.json").read_bytes()
    assert first == (tmp_path / "other.json").read_bytes()
    assert first.endswith(b"}\n")
    assert read_manifest(tmp_path).data == data
    assert read_manifest(tmp_path / "other.json").hash == manifest_hash(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.json", "weights_manifest.json"]


@pytest.mark.parametrize("value", [float("nan"), {1, 2}])
def test_what_json_cannot_hold_is_refused_and_the_old_file_stays(tmp_path, value):
    path = tmp_path / "weights_manifest.json"
    write_manifest(path, manifest_data({}))
    before = path.read_bytes()
    with pytest.raises(ManifestError, match=r"cannot be written \(.*\), expected JSON values"):
        write_manifest(path, manifest_data({}, oof={"total": value}))
    assert path.read_bytes() == before
