"""What ships must stand alone, and imports point down only."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
KERNEL = PROJECT / "kernel" / "lumbar"
OURS = ("lumbar_phantom", "lumbar_train", "lumbar_publish")

SCRIPT = """
import importlib, pkgutil, sys
import lumbar
names = [m.name for m in pkgutil.walk_packages(lumbar.__path__, "lumbar.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
assert len(names) > 20, names
here = sys.argv[1]
for name, module in list(sys.modules.items()):
    if name.split(".")[0].startswith("lumbar"):
        assert name.split(".")[0] == "lumbar", f"{name} was imported"
        file = getattr(module, "__file__", None)
        assert file is None or file.startswith(here), f"{name} comes from {file}"
import lumbar.run, lumbar.metric, lumbar.dicom
print("alone", lumbar.__version__)
"""


def test_the_kernel_alone_in_an_empty_folder_imports_whole(tmp_path):
    shutil.copytree(KERNEL, tmp_path / "lumbar", ignore=shutil.ignore_patterns("__pycache__"))
    # -I: no PYTHONPATH, no user site, not the current folder; ours are taken off what an editable install adds.
    code = (
        f"import sys; sys.path = [p for p in sys.path if not p.startswith({str(PROJECT / 'src')!r}) "
        f"and not p.startswith({str(PROJECT / 'kernel')!r})]; sys.path.insert(0, {str(tmp_path)!r})\n{SCRIPT}"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(tmp_path)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("alone ")


def test_scoring_and_help_need_no_torch(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(KERNEL.parent)!r})\n"
        "import lumbar.__main__, lumbar.metric, lumbar.bundle.manifest, lumbar.run, lumbar.output.submission\n"
        "lumbar.__main__.parser()\n"
        "assert not {'torch', 'numba', 'timm'} & set(sys.modules), sorted(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def imports(path):
    """Every module that a file imports, at any depth of its code."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(KERNEL.parent).parent.parts if path.is_relative_to(KERNEL) else ()
            base = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            yield from (f"{base}{node.module or ''}.{alias.name}".replace("..", ".") for alias in node.names)


def files(folder):
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def offenders(folder, *forbidden):
    offending = []
    for path in files(folder):
        for name in imports(path):
            if any(name == bad or name.startswith(bad + ".") for bad in forbidden):
                offending.append(f"{path.relative_to(PROJECT)} imports {name}")
    return offending


def test_the_import_reader_sees_all_forms(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("import a.b, c\nfrom d.e import f\ndef g():\n    from h import i\n")
    assert sorted(imports(file)) == ["a.b", "c", "d.e.f", "h.i"]
    assert offenders(KERNEL / "models", "torch"), "models are networks: the reader must see their torch"


def test_what_ships_imports_nothing_else_of_ours():
    assert offenders(KERNEL, *OURS) == []


def test_dicom_never_imports_torch_or_what_stands_above_it():
    above = ("models", "stages", "run", "workers", "chains", "study", "bundle", "output")
    assert offenders(KERNEL / "dicom", "torch", "torchvision", "timm", *(f"lumbar.{name}" for name in above)) == []


def test_models_never_import_dicom():
    above = ("dicom", "stages", "run", "workers", "chains", "study", "bundle", "output")
    assert offenders(KERNEL / "models", "pydicom", "numba", *(f"lumbar.{name}" for name in above)) == []


def test_stages_never_import_the_run():
    assert offenders(KERNEL / "stages", *(f"lumbar.{name}" for name in ("run", "workers", "chains", "output"))) == []


@pytest.mark.parametrize("package", OURS)
def test_the_three_packages_never_import_one_another(package):
    folder = PROJECT / "src" / package
    assert files(folder), f"{folder}: found no module"
    assert offenders(folder, *(other for other in OURS if other != package)) == []


def test_nothing_is_unpickled():
    assert offenders(KERNEL, "pickle", "joblib", "dill") == []
    text = "".join(path.read_text() for path in files(KERNEL))
    assert "torch.load(" not in text


def modules():
    """Every module of ours by name."""
    paths = {}
    for root in (PROJECT / "kernel", PROJECT / "src"):
        for path in files(root):
            parts = path.relative_to(root).with_suffix("").parts
            paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


def imported(path, known):
    """Our modules that a file imports, late ones too; what only type checkers read is left out."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else node.module for name in names)


def circles(arrows):
    """Modules on a circle or above one: what is left when all that import nothing that is left are taken away."""
    left = {name: set(targets) - {name} for name, targets in arrows.items()}
    while done := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in done:
            del left[name]
    return left


def test_no_imports_go_in_a_circle():
    known = modules()
    assert len(known) > 200
    left = circles({name: set(imported(path, known)) for name, path in known.items()})
    assert left == {}


def test_a_circle_would_be_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}).keys() == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("folder", "most"),
    [("kernel/lumbar", 20), ("kernel/lumbar/dicom", 17), ("src/lumbar_train", 17), ("src/lumbar_publish", 9)],
)
def test_the_top_of_a_package_stays_easy_to_survey(folder, most):
    aside = {"__init__.py", "__pycache__", "py.typed"}
    entries = [path.name for path in (PROJECT / folder).iterdir() if path.name not in aside and path.suffix != ".j2"]
    assert len(entries) <= most, sorted(entries)
