"""``constraints.txt`` against the environment that the tests run in."""

from __future__ import annotations

import ast
import importlib.util
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
# Import name of a requirement where it is not the requirement's own name.
IMPORTED_AS = {"opencv-python-headless": "cv2", "scikit-learn": "sklearn", "huggingface-hub": "huggingface_hub"}
# Versions that tell whether an environment was made from these constraints, or from those of a notebook image.
TELLING = ("torch", "numpy", "numba", "pandas")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("constraints_tool", REPOSITORY / "tools" / "constraints.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_installed_package_is_pinned_to_its_version(tool: ModuleType) -> None:
    installed, pinned = tool.installed(), tool.pinned()
    others = [name for name in TELLING if installed.get(name) != pinned[name]]
    if others:
        pytest.skip(f"another environment: {', '.join(others)} differ")
    differing = {
        name: (version, pinned.get(name)) for name, version in installed.items() if pinned.get(name) != version
    }
    assert not differing, f"(installed, pinned): {differing}: run `make constraints`"


def test_generated_file_is_what_is_committed(tool: ModuleType) -> None:
    assert tool.text(tool.pinned()) == (REPOSITORY / "constraints.txt").read_text()


def test_a_constraint_of_another_build_is_the_release(tool: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "constraints.txt"
    path.write_text("# comment\nTyping_Extensions==4.16.0  # why\npydicom>=3.0,<3.1\n\n")
    assert tool.pinned(path) == {"typing-extensions": "4.16.0"}


def test_every_requirement_is_pinned(tool: ModuleType) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    required = project["dependencies"] + extras["dev"] + extras["bench"] + extras["tensorboard"]
    names = {tool.canonical(line.split(">")[0].strip()) for line in required}
    assert names <= tool.pinned().keys()


def test_every_imported_package_is_declared(tool: ModuleType) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    declared = {tool.canonical(line.split(">")[0].strip()) for line in project["dependencies"]}
    declared = {IMPORTED_AS.get(name, name) for name in declared}
    extras = project["optional-dependencies"]
    optional = {"fastai", "fastcore", *(tool.canonical(line.split(">")[0]) for line in extras["tensorboard"])}
    ours = {"lumbar", "lumbar_phantom", "lumbar_train", "lumbar_publish"}
    undeclared: dict[str, str] = {}
    for path in [*(REPOSITORY / "kernel").rglob("*.py"), *(REPOSITORY / "src").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for name in {name.partition(".")[0] for name in names}:
                if name not in sys.stdlib_module_names and name not in ours | declared | optional:
                    undeclared[name] = str(path.relative_to(REPOSITORY))
    assert undeclared == {}
