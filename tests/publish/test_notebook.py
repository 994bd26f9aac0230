from __future__ import annotations

import ast
import json
from pathlib import Path

import nbformat
import pytest

from lumbar.bundle.manifest import manifest_hash
from lumbar_publish.names import DatasetId, Layout
from lumbar_publish.sealing.completeness import chain_of
from lumbar_publish.sealing.notebook import notebook_json
from lumbar_publish.sealing.seal import read_json

REPOSITORY = Layout(Path(__file__).resolve().parents[2])


def code_of(page: dict) -> list[str]:
    return ["".join(cell["source"]) for cell in page["cells"] if cell["cell_type"] == "code"]


def test_committed_notebook_is_what_the_lock_file_generates() -> None:
    data = read_json(REPOSITORY.lock)
    text = notebook_json(DatasetId.parse(data["dataset"]["id"]), manifest_hash(REPOSITORY.root), chain_of(data))
    assert REPOSITORY.notebook.read_text(encoding="utf-8") == text, "run `make seal` and commit what it wrote"


def test_notebook_is_thin_valid_and_small() -> None:
    text = notebook_json(DatasetId("me", "lumbar-kit"), "ab" * 32)
    page = json.loads(text)
    nbformat.validate(nbformat.from_dict(page))
    cells = code_of(page)
    assert len(cells) <= 4
    assert len(text) < 100_000
    assert all(cell["outputs"] == [] for cell in page["cells"] if cell["cell_type"] == "code")
    loops = (ast.For, ast.While, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.comprehension)
    for source in cells:
        assert not [node for node in ast.walk(ast.parse(source)) if isinstance(node, loops)]


def test_notebook_carries_the_hash_and_sets_the_cache_before_the_import() -> None:
    source = "\n".join(code_of(json.loads(notebook_json(DatasetId("me", "lumbar-kit"), "ab" * 32))))
    assert "ab" * 32 in source
    assert source.index("NUMBA_CACHE_DIR") < source.index("from lumbar")


@pytest.mark.parametrize("chain", ["main", "baseline"])
def test_notebook_runs_the_chain_that_the_weights_serve(chain: str) -> None:
    source = "\n".join(code_of(json.loads(notebook_json(DatasetId("me", "lumbar-kit"), "ab" * 32, chain))))
    assert f'"--chain", "{chain}"' in source
