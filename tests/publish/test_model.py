"""The bundle as a Kaggle Model: the whole way, its repetition, and its failures, with the real client."""

from __future__ import annotations

import json
import subprocess
import sys

import bleach
import pytest

from lumbar.bundle.manifest import verify
from lumbar_publish.cli import main
from lumbar_publish.kaggle import remote_model, step_dataset
from lumbar_publish.names import DatasetId, Layout
from lumbar_publish.sealing.seal import seal, verify_against_lock
from publish.conftest import Publish, error_line
from publish.kaggle_models import Model, Variation
from publish.kaggle_server import USER, KaggleServer

MODEL, KEY = f"{USER}/lumbar-kit", "pytorch/default"
VARIATION, KERNEL = f"{MODEL}/pyTorch/default", f"{USER}/lumbar-kit-submission"


def content(layout: Layout) -> dict[str, bytes]:
    """What a version holds: the sealed folder without what the client reads beside it."""
    files = {p.relative_to(layout.sealed).as_posix(): p.read_bytes() for p in layout.sealed.rglob("*") if p.is_file()}
    return {name: data for name, data in files.items() if not name.endswith("-metadata.json")}


@pytest.mark.slow
def test_whole_publication_and_its_repetition(kaggle: KaggleServer, publish: Publish, layout: Layout) -> None:
    code, out, err = publish("--as", "model")
    assert code == 0, out + err
    assert f"model {VARIATION}: manifest " in out
    assert "public score 0.355" in out
    variation = kaggle.models[MODEL].variations[KEY]
    assert variation.versions == [content(layout)]
    assert not kaggle.datasets
    (pushed,) = kaggle.kernels[KERNEL].versions
    assert pushed["modelDataSources"] == [f"{VARIATION}/1"]
    assert not pushed.get("datasetDataSources")
    verify_against_lock(layout, layout.sealed)

    code, out, _ = publish()  # what was asked for last stays
    assert code == 0
    assert "nothing to upload" in out
    counts = (len(variation.versions), len(kaggle.kernels[KERNEL].versions), len(kaggle.submissions))
    assert counts == (1, 1, 1)
    assert kaggle.calls["CreateModel"] == 1
    assert kaggle.calls["UpdateModel"] == kaggle.calls["UpdateModelInstance"] == 0


@pytest.fixture
def model_published(kaggle: KaggleServer, publish: Publish, layout: Layout) -> str:
    """The tiny repository's bundle as version 1 of its model; the manifest's hash."""
    code, out, err = publish("model")
    assert code == 0, out + err
    return (layout.sealed / "weights_manifest.json").read_text()


def test_new_content_is_a_new_version_and_the_card_follows(
    kaggle: KaggleServer, model_published: str, publish: Publish, layout: Layout
) -> None:
    kaggle.models[MODEL].card["isPrivate"] = False  # by its owner, in the browser
    (layout.kernel / "stages" / "__init__.py").write_text("x = 1\n")
    code, out, err = publish("model")
    assert code == 0, out + err
    variation = kaggle.models[MODEL].variations[KEY]
    assert len(variation.versions) == 2
    assert variation.versions[1] == content(layout)
    (request,) = [request for method, request in kaggle.requests if method == "CreateModelInstanceVersion"]
    assert request["body"]["versionNotes"] == "first try"
    manifest = verify(layout.sealed)
    assert manifest.hash in kaggle.models[MODEL].card["description"]
    assert manifest.hash[:12] in variation.card["overview"]
    assert kaggle.models[MODEL].card["isPrivate"] is False
    assert f'"{VARIATION}/2"' not in layout.kernel_metadata.read_text()
    code, out, err = publish("kernel")
    assert code == 0, out + err
    assert kaggle.kernels[KERNEL].versions[0]["modelDataSources"] == [f"{VARIATION}/2"]


def test_a_card_keeps_its_markup_through_the_client(layout: Layout) -> None:
    sealed = seal(layout)
    remote_model.write_model_metadata(sealed.folder, DatasetId("Some-One", "lumbar-kit"))
    for name, field in (("model-metadata.json", "description"), ("model-instance-metadata.json", "usage")):
        data = json.loads((sealed.folder / name).read_text())
        assert data["ownerSlug"] == "some-one"  # the client takes lower case alone
        assert bleach.clean(data[field]) == data[field]
    assert 'kagglehub.model_download("some-one/lumbar-kit/pyTorch/default")' in data["usage"]


def test_an_archive_that_is_unpacked_late_is_waited_for(kaggle: KaggleServer, publish: Publish) -> None:
    kaggle.packed_looks = 3
    code, out, err = publish("model")
    assert code == 0, out + err
    assert kaggle.calls["ListModelInstanceVersionFiles"] == 4


def test_an_archive_that_stays_packed_is_said(
    kaggle: KaggleServer, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    kaggle.packed_looks = 100
    monkeypatch.setattr(remote_model.ModelStore, "unpacking_limit_s", 0.0)
    code, _, err = publish("model")
    assert code == 1
    assert f"model {VARIATION}: Kaggle does not list code/lumbar/__init__.py, " in error_line(err)
    kaggle.models[MODEL].variations[KEY].packed_looks = 0
    code, out, err = publish("model")
    assert code == 0, out + err
    assert "nothing to upload" in out
    assert kaggle.calls["CreateModelInstance"] == 1


def test_an_interrupted_upload_of_a_model_goes_on(kaggle: KaggleServer, publish: Publish, layout: Layout) -> None:
    kaggle.refuse("CreateModelInstance", 400, "nope")
    kaggle.cut_uploads["weights.zip"] = 1
    code, _, err = publish("model")
    assert code == 1
    assert f"upload of weights.zip to {VARIATION} failed half-way" in error_line(err)
    kaggle.fail.clear()
    code, out, err = publish("model")
    assert code == 0, out + err
    assert "going on with an interrupted upload" in out
    assert kaggle.sent == {blob.name: blob.size for blob in kaggle.blobs.values()}
    assert kaggle.models[MODEL].variations[KEY].versions == [content(layout)]
    assert kaggle.calls["CreateModel"] == 1


def test_a_version_that_nobody_saw_served_is_not_sent_again(
    kaggle: KaggleServer, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    kaggle.model_looks = 4
    with monkeypatch.context() as patch:
        patch.setattr(step_dataset, "_wait_served", stopped)
        assert publish("model")[0] == 1
    code, out, err = publish("model")
    assert code == 0, out + err
    assert "was uploaded before: waiting for it" in out
    assert len(kaggle.models[MODEL].variations[KEY].versions) == 1


def test_a_variation_without_a_processed_version_gets_one(kaggle: KaggleServer, publish: Publish) -> None:
    kaggle.refuse("GetModelInstance", 404, "Model instance not found", times=2)  # no version of it is processed
    kaggle.models[MODEL] = Model({"title": "x", "description": "x", "isPrivate": True})
    kaggle.models[MODEL].variations[KEY] = Variation({"framework": "MODEL_FRAMEWORK_PY_TORCH"}, [{"a": b""}], 99)
    code, out, err = publish("model")
    assert code == 0, out + err
    assert kaggle.calls["CreateModelInstanceVersion"] == 1


CREATION_ERRORS = {
    "CreateModel": ("The title is taken", "Model creation error: The title is taken"),
    "CreateModelInstance": ("License 'x' is not valid", "Model instance creation error: License 'x' is not valid"),
}


@pytest.mark.parametrize("method", CREATION_ERRORS)
def test_creation_errors_with_exit_0(kaggle: KaggleServer, publish: Publish, method: str) -> None:
    words, said = CREATION_ERRORS[method]
    kaggle.answer(method, {"error": words, "errorCode": 400})
    code, _, err = publish("model")
    assert code == 1
    assert f"{said}: the model was not created: mend that" in error_line(err)
    assert publish("model")[0] == 0


def test_a_card_that_is_not_taken_is_said_and_taken_later(
    kaggle: KaggleServer, model_published: str, publish: Publish
) -> None:
    kaggle.models[MODEL].card["description"] = "another"
    kaggle.answer("UpdateModel", {"error": "too long"})
    code, _, err = publish("model")
    assert code == 1
    assert f"Model update error: too long: the card of {MODEL} was not updated: mend that" in error_line(err)
    code, out, _ = publish("model")
    assert code == 0
    assert "nothing to upload" in out
    assert "# Lumbar spine MR" in kaggle.models[MODEL].card["description"]
    assert len(kaggle.models[MODEL].variations[KEY].versions) == 1


def test_a_model_that_kaggle_does_not_attach_is_said(
    kaggle: KaggleServer, model_published: str, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kaggle, "has_model_version", lambda _: False)
    code, _, err = publish("kernel")
    assert code == 1
    assert f"model sources ['{VARIATION}/1'] are not valid: mend " in error_line(err)


def test_dataset_and_model_are_two_places(
    kaggle: KaggleServer, model_published: str, publish: Publish, layout: Layout
) -> None:
    code, _, err = publish("kernel", "--as", "dataset")
    assert code == 1
    assert "run `build_dataset.py --publish dataset -m NOTES` first" in error_line(err)
    code, _, err = publish("model", "--as", "dataset")
    assert code == 1
    assert "--publish model: found --as dataset, expected --as model" in error_line(err)
    code, out, err = publish("dataset")
    assert code == 0, out + err
    assert kaggle.datasets[MODEL].versions == [content(layout)]
    assert json.loads(layout.kernel_metadata.read_text())["model_sources"] == []
    assert not list(layout.sealed.glob("model-*.json"))


@pytest.mark.slow
def test_a_tag_names_the_models_version(
    kaggle: KaggleServer, model_published: str, publish: Publish, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "A")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@example.org")
    (layout.root / ".gitignore").write_text("/dist/\n")
    data = json.loads(layout.kernel_metadata.read_text())
    layout.kernel_metadata.write_text(json.dumps(data | {"model_sources": [f"{VARIATION}/7"]}))
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "sealed"]):
        subprocess.run(["git", "-C", str(layout.root), *command], check=True)
    code, out, err = publish("--tag")  # writes the version's number into the notebook's metadata
    assert code == 0, out + err
    assert "tag lumbar-kit-model-1-notebook-1: set here" in out


def test_plain_client_works_on_what_is_left(kaggle: KaggleServer, publish: Publish, layout: Layout) -> None:
    def kaggle_says(*arguments: str) -> str:
        command = [sys.executable, "-m", "kaggle", *arguments]
        return subprocess.run(command, cwd=layout.root, capture_output=True, text=True, check=True).stdout

    assert main(layout, lambda folder: None, ["--as", "model"]) == 0
    kaggle.model_looks = 0
    assert "Your model was created" in kaggle_says("models", "create", "-p", "dist/dataset")
    folder = ("-p", "dist/dataset", "--dir-mode", "zip")
    assert "was created" in kaggle_says("models", "variations", "create", *folder)
    assert "was created" in kaggle_says("models", "variations", "versions", "create", VARIATION, *folder, "-n", "again")
    assert kaggle.models[MODEL].variations[KEY].versions == [content(layout)] * 2
    assert "Kernel version 1 successfully pushed" in kaggle_says("kernels", "push", "-p", "kernel")
    assert kaggle.kernels[KERNEL].versions[0]["modelDataSources"] == [f"{VARIATION}/1"]
    # what a user of the model gets, also by kagglehub.model_download: a whole bundle
    kaggle_says("models", "variations", "versions", "download", f"{VARIATION}/2", "-p", "there", "--untar")
    assert verify(layout.root / "there").hash == verify(layout.sealed).hash
