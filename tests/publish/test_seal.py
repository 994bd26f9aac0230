from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lumbar.bundle.manifest import read_manifest, verify, write_manifest
from lumbar.errors import CohortError, LumbarError, ManifestError
from lumbar.io.arguments import python_word
from lumbar.output.record import versions
from lumbar_publish.cli import main
from lumbar_publish.names import DatasetId, Layout
from lumbar_publish.sealing import seal as seal_module
from lumbar_publish.sealing.seal import code_sha256, seal, verify_against_lock
from lumbar_publish.sealing.smoke_test import run_chain


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_sealed_folder_holds_code_weights_manifest_and_metadata_alone(layout: Layout) -> None:
    (layout.kernel / "__pycache__").mkdir()
    for junk in ("__pycache__/a.pyc", ".hidden.py", "notes.py~", "stages/.DS_Store"):
        (layout.kernel / junk).write_text("junk")
    sealed = seal(layout)
    names = set(tree(sealed.folder))
    assert {n for n in names if not n.startswith("weights/")} == {
        "code/lumbar/__init__.py",
        "code/lumbar/__main__.py",
        "code/lumbar/columns.json",
        "code/lumbar/stages/__init__.py",
        "weights_manifest.json",
        "dataset-metadata.json",
    }
    assert len([n for n in names if n.startswith("weights/")]) == 7
    assert sealed.sizes["weights"] == sum(p.stat().st_size for p in (sealed.folder / "weights").iterdir())


def test_sealing_twice_gives_the_same_bytes_times_and_hash(layout: Layout) -> None:
    first = seal(layout)
    before, times = tree(first.folder), {p.stat().st_mtime_ns for p in first.folder.rglob("*")}
    lock, notebook = layout.lock.read_bytes(), layout.notebook.read_bytes()
    shutil.rmtree(layout.root / "dist")
    second = seal(layout)
    assert tree(second.folder) == before
    assert {p.stat().st_mtime_ns for p in second.folder.rglob("*")} == times
    assert len(times) == 1
    assert second.manifest_hash == first.manifest_hash
    assert (layout.lock.read_bytes(), layout.notebook.read_bytes()) == (lock, notebook)


def test_manifest_notes_the_versions_it_was_rehearsed_on(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    first = seal(layout)
    assert read_manifest(first.folder).data["rehearsed"] == versions()
    # the same content sealed on another machine is the same bundle; other content was tried on that machine
    elsewhere = versions() | {"torch": "1.0"}
    monkeypatch.setattr(seal_module, "versions", lambda: elsewhere)
    assert seal(layout).manifest_hash == first.manifest_hash
    (layout.kernel / "stages" / "__init__.py").write_text("x = 1\n")
    assert read_manifest(seal(layout).folder).data["rehearsed"] == elsewhere


def test_lock_file_is_the_sealed_manifest(layout: Layout) -> None:
    sealed = seal(layout)
    assert layout.lock.read_bytes() == (sealed.folder / "weights_manifest.json").read_bytes()
    assert read_manifest(sealed.folder).code_sha256 == code_sha256(layout.kernel)
    assert verify_against_lock(layout, sealed.folder) == sealed.manifest_hash


def test_changed_code_changes_the_hash_and_verify_says_where(layout: Layout, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(seal(layout).folder, old)
    (layout.kernel / "stages" / "__init__.py").write_text("x = 1\n")
    seal(layout)
    with pytest.raises(ManifestError, match=r"they differ in code_sha256$"):
        verify_against_lock(layout, old)


def test_run_is_sealed_and_becomes_the_demo_only_when_asked(layout: Layout, export: Path) -> None:
    weight = export / "export" / "weights" / "aggregator.full.safetensors"
    data = json.loads((export / "export" / "weights_manifest.json").read_text())
    new = weight.read_bytes().replace(b"\0\0\xc0\x40", b"\0\0\xd0\x40")
    weight.write_bytes(new)
    data["weights"][-1]["sha256"] = hashlib.sha256(new).hexdigest()
    write_manifest(export / "export" / "weights_manifest.json", data)
    seal(layout, run=export)
    assert (layout.sealed / "weights" / weight.name).read_bytes() == new
    assert (layout.demo_weights / weight.name).read_bytes() != new
    seal(layout, run=export, as_demo=True)
    assert (layout.demo_weights / weight.name).read_bytes() == new
    assert seal(layout).manifest_hash == verify_against_lock(layout, layout.sealed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["weights"].pop(), "no weights for aggregator"),
        (lambda data: data["weights"][0].update(stage="dreaming"), "unknown stages dreaming"),
        (lambda data: data["weights"][0].update(recipe="strong"), "manifest says demo, .*sagittal_xy.* is of strong"),
    ],
)
def test_incomplete_or_mixed_run_is_refused_unless_forced(layout: Layout, change, message: str) -> None:
    before = tree(seal(layout).folder)
    data = json.loads(layout.lock.read_text())
    change(data)
    write_manifest(layout.lock, data)
    with pytest.raises(ManifestError, match=message):
        seal(layout)
    assert tree(layout.sealed) == before
    sealed = seal(layout, force=True)
    forced = read_manifest(sealed.folder).forced
    assert len(forced) >= 1
    assert seal(layout).manifest_hash == sealed.manifest_hash  # the lock file remembers what was accepted


def test_folds_of_one_stage_must_be_one_network(layout: Layout) -> None:
    data = json.loads(layout.lock.read_text())
    source = layout.demo_weights / "axial_xy.full.safetensors"
    shutil.copy(source, source.with_name("axial_xy.fold0.safetensors"))
    other = next(entry for entry in data["weights"] if entry["stage"] == "axial_xy")
    data["weights"].append({**other, "file": "weights/axial_xy.fold0.safetensors", "fold": 0, "config": {"size": 3}})
    write_manifest(layout.lock, data)
    with pytest.raises(ManifestError, match=r"axial_xy: .* differ in config \(size: 3 and 2\)"):
        seal(layout)


def test_recipe_of_the_run_must_be_the_manifests(layout: Layout, export: Path) -> None:
    (export / "recipe.json").write_text('{"name": "strong"}')
    with pytest.raises(ManifestError, match=r"the manifest says demo, recipe\.json says strong"):
        seal(layout, run=export)


def test_changed_or_missing_weight_is_named_and_nothing_is_left_half_done(layout: Layout) -> None:
    before = tree(seal(layout).folder)
    weight = layout.demo_weights / "axial_xy.full.safetensors"
    weight.write_bytes(weight.read_bytes()[:-1] + b"!")
    with pytest.raises(ManifestError, match=r"axial_xy\.full\.safetensors: .*sha256 .*manifest says"):
        seal(layout)
    weight.unlink()
    with pytest.raises(ManifestError, match=r"axial_xy\.full\.safetensors: no such file"):
        seal(layout)
    assert tree(layout.sealed) == before
    assert [p.name for p in layout.sealed.parent.iterdir()] == ["dataset"]


def test_failed_rehearsal_leaves_the_sealed_folder_as_it_was(layout: Layout) -> None:
    before, lock = tree(seal(layout).folder), layout.lock.read_bytes()
    (layout.kernel / "new.py").write_text("")

    def refuse(folder: Path) -> None:
        assert verify(folder).weights
        raise CohortError("no")

    with pytest.raises(CohortError):
        seal(layout, rehearse=refuse)
    assert (tree(layout.sealed), layout.lock.read_bytes()) == (before, lock)


def test_owner_comes_from_the_command_then_the_account_then_the_lock(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert str(seal(layout).dataset) == "someone/lumbar-kit"
    monkeypatch.setenv("KAGGLE_USERNAME", "account")
    assert str(DatasetId.choose("someone/lumbar-kit")) == "account/lumbar-kit"
    assert str(DatasetId.choose("someone/lumbar-kit", "asked", "other-slug")) == "asked/other-slug"
    assert str(seal(layout).dataset) == "account/lumbar-kit"


BAD_IDS = ["noslash", "a/b", "a/UPPER-case", "a/two--hyphens", "a b/lumbar-kit", "a/" + "x" * 40]


@pytest.mark.parametrize("text", BAD_IDS)
def test_ids_that_kaggle_would_refuse_are_refused(text: str) -> None:
    with pytest.raises(ManifestError, match="expected"):
        DatasetId.parse(text)


def test_command_line_seals_verifies_and_says_what_is_wrong(
    layout: Layout, competition: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def sample(folder: Path) -> None:
        shutil.copytree(competition, folder)

    assert main(layout, sample, ["--owner", "me", "--slug", "my-lumbar-kit"]) == 0
    assert [path for path in layout.sealed.rglob("*") if "__pycache__" in path.parts] == []
    assert len({path.stat().st_mtime_ns for path in layout.sealed.rglob("*")}) == 1
    assert "me/my-lumbar-kit" in capsys.readouterr().out
    assert main(layout, sample, ["--verify", str(layout.sealed)]) == 0
    (layout.sealed / "weights" / "aggregator.full.safetensors").write_bytes(b"")
    assert main(layout, sample, ["--verify", str(layout.sealed)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "aggregator.full.safetensors: found 0 bytes" in error
    assert main(layout, sample, ["--run", str(layout.root / "nowhere")]) == 1
    assert "no export/ folder" in capsys.readouterr().err


def test_a_run_that_is_not_finished_is_named_with_the_command_that_goes_on(
    layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    run = layout.root / "play"
    run.mkdir()
    (run / "recipe.json").write_text('{"name": "demo"}')
    refused = f"{run}: no export/ folder, expected a run that lumbar_train has finished; this one is not finished, go"
    train, data = "python -m lumbar_train train --data", layout.root / "my data"
    data.mkdir()
    for command, expected in (
        ("", f"{python_word()} -m lumbar_train train --recipe demo --data ROOT --out {run} --resume"),
        (f"{train} '{data}' --out old --seed 3 --resume", f"{train} '{data}' --out {run} --seed 3 --resume"),
        (f"{train} /kaggle/input/rsna --out old --resume", f"{train} ROOT --out {run} --resume"),  # come home
    ):
        (run / "session.json").write_text(json.dumps({"status": "interrupted", "command": command}))
        assert main(layout, lambda _: None, ["--run", str(run)]) == 1
        assert capsys.readouterr().err == f"error: {refused} on with: {expected}\n"


def test_sealed_chain_that_fails_is_not_sealed(
    layout: Layout, competition: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (competition / "test_series_descriptions.csv").write_text("study_id,series_id,series_description\n")
    monkeypatch.setenv("TEST_KERNEL_DOES", "sys.exit('probe gave 1, expected 2')")
    assert main(layout, lambda folder: None, ["--sample", str(competition)]) == 1
    assert "probe gave 1, expected 2" in capsys.readouterr().err
    assert not layout.sealed.exists()


def test_sealed_chain_sees_nothing_of_ours_but_the_sealed_folder(layout: Layout, competition: Path) -> None:
    (layout.kernel / "stages" / "__init__.py").write_text("import lumbar_publish\n")
    (layout.kernel / "__init__.py").write_text("import lumbar.stages\n")
    with pytest.raises(LumbarError, match="No module named 'lumbar_publish'"):
        seal(layout, rehearse=lambda folder: run_chain(folder, competition))


def test_without_a_run_the_weights_sealed_last_are_sealed_again(layout: Layout, export: Path) -> None:
    manifest = export / "export" / "weights_manifest.json"
    data = json.loads(manifest.read_text())
    for number, entry in enumerate(data["weights"]):
        path = export / "export" / entry["file"]
        save_file({"weight": np.full((2, 2), 7 + number, np.float32)}, path)
        entry["sha256"], entry["bytes"] = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size
    write_manifest(manifest, data)
    sealed = seal(layout, run=export)
    again = seal(layout)  # the demo's weights are others, and stay
    assert again.manifest_hash == sealed.manifest_hash
    assert (again.folder / "weights" / path.name).read_bytes() == path.read_bytes()
    (layout.kernel / "stages" / "__init__.py").write_text("x = 1\n")
    changed = seal(layout)
    assert changed.manifest_hash != sealed.manifest_hash
    assert (changed.folder / "weights" / path.name).read_bytes() == path.read_bytes()
    shutil.rmtree(layout.sealed)
    with pytest.raises(ManifestError, match=r"name the run that weights_manifest\.json was sealed from with --run RUN"):
        seal(layout)
