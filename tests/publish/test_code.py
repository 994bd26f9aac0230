"""The sealed code is checked before it runs: by the notebook's first cell and by ``--verify``."""

from __future__ import annotations

import json
import os
import py_compile
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lumbar.bundle.code_hash import digest, sealed_hashes
from lumbar.bundle.manifest import read_manifest, verify, write_manifest
from lumbar.errors import ManifestError
from lumbar_publish.cli import main
from lumbar_publish.names import DatasetId, Layout
from lumbar_publish.rehearsal import dry_run
from lumbar_publish.sealing.notebook import notebook_json
from lumbar_publish.sealing.seal import seal, verify_against_lock

REPOSITORY = Layout(Path(__file__).resolve().parents[2])
FORMS = ["folder", "flat"]


@pytest.fixture(params=FORMS)
def mounted(request: pytest.FixtureRequest, layout: Layout, competition: Path) -> Path:
    """A sealed bundle as mounted on Kaggle, with the package in its folder and without, writable for the test."""
    return mount(layout, competition, is_flat=request.param == "flat")


def mount(layout: Layout, competition: Path, *, is_flat: bool) -> Path:
    sealed = seal(layout)
    kaggle, _ = dry_run.lay_out(layout.root / "dist" / "dry-run", sealed, competition, link_data=True)
    bundle = kaggle / "input" / "datasets" / "someone" / "lumbar-kit"
    for path in [bundle, *bundle.rglob("*")]:
        path.chmod(0o755)
    if is_flat:
        shutil.move(bundle / "code" / "lumbar", bundle / "lumbar")
        (bundle / "code").rmdir()
    return bundle


def package_of(bundle: Path) -> Path:
    return bundle / "lumbar" if (bundle / "lumbar").is_dir() else bundle / "code" / "lumbar"


def run_cells(layout: Layout, bundle: Path, n_cells: int = 1, more: str = "") -> subprocess.CompletedProcess[str]:
    """Run the notebook's first code cells over the mounted bundle, then ``more``."""
    cells = json.loads(layout.notebook.read_text())["cells"][1 : 1 + n_cells]
    source = "\n".join(["".join(cell["source"]) for cell in cells] + [more])
    environment = {"LUMBAR_KAGGLE_ROOT": str(next(p for p in bundle.parents if p.name == "kaggle"))}
    command = [sys.executable, "-c", source]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=layout.root)


PLANTED = "open('planted', 'w').close()\n"
CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "edited": (lambda p: (p / "__init__.py").write_text(PLANTED), "['__init__.py']"),
    "removed": (lambda p: (p / "columns.json").unlink(), "['columns.json']"),
    "extra module": (lambda p: (p / "stages" / "json.py").write_text(PLANTED), "['stages/json.py']"),
    "extension": (lambda p: (p / "x.abi3.so").write_bytes(b""), "['x.abi3.so']"),
    "bytecode without source": (lambda p: (p / "x.pyc").write_bytes(b""), "['x.pyc']"),
    "name that is no text": (lambda p: (p / os.fsdecode(b"\xff.py")).write_text(""), "'\\udcff.py'"),
    "linked file": (lambda p: (p / "x.py").symlink_to("/etc/hostname"), "/x.py']"),
    "linked folder": (lambda p: (p / "x").symlink_to("/etc"), "/x']"),
    "FIFO": (lambda p: os.mkfifo(p / "x.py"), "/x.py']"),
    "FIFO in the place of a file": (
        lambda p: ((p / "columns.json").unlink(), os.mkfifo(p / "columns.json")),
        "columns",
    ),
    "module beside": (lambda p: (p.parent / "json.py").write_text(PLANTED), "/json.py']"),
    "package beside": (lambda p: (p.parent / "torch").mkdir(), "/torch']"),
    "start-up module beside": (lambda p: (p.parent / "sitecustomize.py").write_text(PLANTED), "/sitecustomize.py']"),
    "extension beside": (lambda p: (p.parent / "cv2.so").write_bytes(b""), "/cv2.so']"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_first_cell_ends_in_one_line_before_any_code_of_the_bundle_runs(
    layout: Layout, mounted: Path, name: str
) -> None:
    change, named = CHANGES[name]
    change(package_of(mounted))
    done = run_cells(layout, mounted, 2)
    assert done.returncode == 1
    assert done.stderr.startswith("Seal and upload dataset someone/lumbar-kit again: the code in ")
    assert done.stderr.count("\n") == 1
    assert named in done.stderr
    assert not (layout.root / "planted").exists()
    with pytest.raises(ManifestError):
        verify(mounted)


@pytest.mark.parametrize("place", ["numpy.py", "torch", "lumbar"])
def test_what_lies_flat_beside_the_code_folder_is_refused_too(layout: Layout, competition: Path, place: str) -> None:
    bundle = mount(layout, competition, is_flat=False)
    (bundle / place).write_text("") if place.endswith(".py") else (bundle / place).mkdir()
    assert f"/{place}']" in run_cells(layout, bundle).stderr


def test_a_bundle_without_its_package_is_refused(layout: Layout, mounted: Path) -> None:
    shutil.rmtree(package_of(mounted))
    done = run_cells(layout, mounted)
    assert done.returncode == 1
    assert done.stderr.startswith("Seal and upload dataset someone/lumbar-kit again: the code in ")


def test_an_untouched_bundle_passes_and_one_with_bytecode_runs_its_sources(layout: Layout, mounted: Path) -> None:
    package = package_of(mounted)
    show = "import lumbar; print('planted' if hasattr(lumbar, 'planted') else 'as sealed', sys.path[0])"
    done = run_cells(layout, mounted, 2, show)
    assert done.stdout.splitlines()[-1] == f"as sealed {package.parent}", done.stderr
    # Bytecode that Python takes for the compiled __init__.py: its header holds the source's time and size.
    sealed, planted = (package / "__init__.py").read_text(), "planted = 1\n"
    stat = (package / "__init__.py").stat()
    (package / "__init__.py").write_text(planted.ljust(len(sealed), "#"))
    os.utime(package / "__init__.py", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    py_compile.compile(str(package / "__init__.py"))
    (package / "__init__.py").write_text(sealed)
    os.utime(package / "__init__.py", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    by_itself = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(package.parent)!r})\n{show}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert by_itself.stdout.startswith("planted")
    done = run_cells(layout, mounted, 2, show)
    assert done.stdout.splitlines()[-1].startswith("as sealed"), done.stderr


SHIPPED = REPOSITORY.kernel
ODD_TREES = {
    "order of places": {"a.py": "1", "a-b.py": "2", "a/b.py": "3", "a0.py": "4", "A.py": "5"},
    "letters of all kinds": {"é/ü.txt": "1", "日本.py": "2", "a b.py": "3", os.fsdecode(b"\xfe/\xff.py"): "4"},
    "line breaks": {"a\nb.py": "1", "a\n": "2"},
    "bytecode": {"a.py": "1", "__pycache__/a.pyc": "2", "b/__pycache__/c/d.py": "3", "__pycache__.py": "4"},
    "hidden": {".a/b": "1", ".b": "2", "empty": ""},
}


@pytest.mark.parametrize("name", ["shipped", *ODD_TREES])
def test_the_notebook_and_the_kernel_have_one_rule(
    layout: Layout, competition: Path, name: str, tmp_path: Path
) -> None:
    bundle = mount(layout, competition, is_flat=False)
    shutil.rmtree(bundle / "code" / "lumbar")
    if name == "shipped":
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(SHIPPED, bundle / "code" / "lumbar", ignore=ignored)
    for place, text in ODD_TREES.get(name, {}).items():
        (bundle / "code" / "lumbar" / place).parent.mkdir(parents=True, exist_ok=True)
        (bundle / "code" / "lumbar" / place).write_text(text)
    expected = digest(sealed_hashes(bundle / "code" / "lumbar"))
    data = read_manifest(bundle).data | {"code_sha256": expected, "code_files": {}}
    data.pop("code_files")
    (bundle / "weights_manifest.json").unlink()
    write_manifest(bundle / "weights_manifest.json", data)
    layout.notebook.write_text(notebook_json(DatasetId("someone", "lumbar-kit"), read_manifest(bundle).hash))
    done = run_cells(layout, bundle)
    assert done.returncode == 0, done.stderr
    assert f"code {expected[:12]};" in done.stdout


def test_verify_refuses_changed_code_and_names_it(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    sealed = seal(layout).folder
    (sealed / "code" / "lumbar" / "__pycache__").mkdir()
    assert main(layout, lambda folder: None, ["--verify", str(sealed)]) == 0
    (sealed / "code" / "lumbar" / "__init__.py").write_text('"""Other."""\n')
    assert main(layout, lambda folder: None, ["--verify", str(sealed)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "found code hash" in error
    assert "changed __init__.py" in error


@pytest.mark.parametrize("place", ["README.md", "weights/x.safetensors", "weights/sub/x.txt", "code/notes.txt", "x.py"])
def test_verify_names_what_was_not_sealed(layout: Layout, place: str) -> None:
    sealed = seal(layout).folder
    (sealed / place).parent.mkdir(exist_ok=True)
    (sealed / place).write_text("")
    with pytest.raises(ManifestError, match=f"found '?{place}'?"):
        verify_against_lock(layout, sealed)


def test_verify_refuses_a_folder_without_code(layout: Layout) -> None:
    sealed = seal(layout).folder
    shutil.rmtree(sealed / "code")
    with pytest.raises(ManifestError, match=r"code/lumbar: not found, expected the sealed code"):
        verify_against_lock(layout, sealed)


def test_sealing_lists_every_file_of_the_code(layout: Layout) -> None:
    data = read_manifest(seal(layout).folder).data
    assert sorted(data["code_files"]) == ["__init__.py", "__main__.py", "columns.json", "stages/__init__.py"]
    assert digest(data["code_files"]) == data["code_sha256"]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"name": ', "\udcff"])
def test_a_recipe_or_manifest_of_a_run_that_is_no_json_is_refused(layout: Layout, export: Path, text: str) -> None:
    for path in (export / "recipe.json", export / "export" / "weights_manifest.json"):
        path.write_bytes(os.fsencode(text))
        assert main(layout, lambda folder: None, ["--run", str(export)]) == 1
