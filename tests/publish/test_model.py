"""The bundle as a Kaggle Model: the whole way, its repetition, and its failures, with the real client."""

from __future__ import annotations

from lumbar_publish.names import Layout
from lumbar_publish.sealing.seal import verify_against_lock
from publish.conftest import Publish
from publish.kaggle_server import USER, KaggleServer

MODEL, KEY = f"{USER}/lumbar-kit", "pytorch/default"
VARIATION, KERNEL = f"{MODEL}/pyTorch/default", f"{USER}/lumbar-kit-submission"


def content(layout: Layout) -> dict[str, bytes]:
    """What a version holds: the sealed folder without what the client reads beside it."""
    files = {p.relative_to(layout.sealed).as_posix(): p.read_bytes() for p in layout.sealed.rglob("*") if p.is_file()}
    return {name: data for name, data in files.items() if not name.endswith("-metadata.json")}


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
