"""External members at sealing: code under the package's hash, whose imports must be in Kaggle's image."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lumbar.bundle.code_hash import FOLDER, MEMBERS, PACKAGE
from lumbar.bundle.external_code import member_folders, read_code
from lumbar.errors import ManifestError
from lumbar.stages.classifiers import EXTERNAL
from lumbar_publish.training.wheels import IMAGES, distribution, image_names

# Of one dataset, by Kaggle's own page (kaggle.com/docs/datasets, "Technical specifications"); not tried out.
MAX_BYTES = 200 * 10**9
LEFT_OUT = "external member "  # how the line of a member that failed on a study goes on, behind the study
_GUARDS = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}
_DYNAMIC = {"import_module", "__import__"}


def external_entries(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The external members among a manifest's classifiers."""
    return [entry for entry in data.get("classifiers", ()) if EXTERNAL in entry]


def member_hashes(data: Mapping[str, Any]) -> dict[str, str]:
    """The sha256 of each file of the members' code, by its place in the package."""
    return {
        f"{MEMBERS}/{entry['name']}/{place}": sha256
        for entry in external_entries(data)
        for place, sha256 in entry[EXTERNAL]["files"].items()
    }


def code_of(data: Mapping[str, Any], source: Path) -> dict[str, bytes]:
    """The content of each of these files, by its place in the package.

    Args:
        data: the manifest.
        source: the bundle or export that holds them.

    Raises:
        ManifestError: a file that is missing, or is not the one that the manifest lists.
    """
    code: dict[str, bytes] = {}
    for entry in external_entries(data):
        folders = member_folders(source, entry["name"])
        folder = next((one for one in folders if one.is_dir()), None)
        if folder is None:
            raise ManifestError(
                f"{folders[-1]}: not found, expected the code of external member {entry['name']}: name the run that it "
                "is sealed from with --run RUN"
            )
        files = read_code(folder, entry[EXTERNAL]["files"])
        code |= {f"{MEMBERS}/{entry['name']}/{place}": content for place, content in files.items()}
    return code


def stage_code(folder: Path, code: Mapping[str, bytes]) -> None:
    """Write the members' code into the package of a bundle that is being sealed."""
    for place, content in code.items():
        target = folder / FOLDER / PACKAGE / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def check_size(data: Mapping[str, Any], where: Path) -> None:
    """Refuse weights that are together larger than a dataset may be.

    Raises:
        ManifestError: with their size.
    """
    total = sum(int(entry["bytes"]) for entry in data.get("weights") or [])
    if total > MAX_BYTES:
        raise ManifestError(
            f"{where}: found {total / 1e9:.1f} GB of weights, expected at most {MAX_BYTES / 1e9:.0f} GB, what "
            "Kaggle takes for a dataset: choose fewer members"
        )


def image_errors(root: Path, code: Mapping[str, bytes]) -> list[str]:
    """What members import and Kaggle's image lacks, a line each.

    Args:
        root: the repository, with the images' pins.
        code: content of each file by its place.
    """
    if not code:
        return []
    there = image_names(root)
    reasons = []
    for place, content in sorted(code.items()):
        if not place.endswith(".py"):
            continue
        try:
            tree = ast.parse(content, place)
        except (SyntaxError, ValueError) as error:
            reasons.append(f"{place}: found no Python ({error}), expected a module")
            continue
        for name, line in sorted(imported(tree)):
            if name not in sys.stdlib_module_names and name != PACKAGE and distribution(name) not in there:
                reasons.append(
                    f"{place}:{line}: found an import of {name}, expected what Kaggle's image has ({IMAGES[0][0]})"
                )
    return reasons


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Top modules that a module imports, each with its line: late ones and ``import_module("name")`` too.

    What only type checkers read, and what stands in a ``try`` that goes on without it, is left out.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module and not node.level:
                yield node.module.partition(".")[0], node.lineno
        elif isinstance(node, ast.Call) and _called(node) in _DYNAMIC and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str) and not first.value.startswith("."):
                yield first.value.partition(".")[0], node.lineno
        if isinstance(node, ast.Try) and any(map(_catches_imports, node.handlers)):
            for part in (*node.handlers, *node.orelse, *node.finalbody):
                yield from imported(part)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for part in node.orelse:
                yield from imported(ast.Module([part], []))
        else:
            yield from imported(node)


def _called(node: ast.Call) -> str:
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _catches_imports(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(isinstance(kind, ast.Name) and kind.id in _GUARDS for kind in kinds)


def check_record(record: Path) -> None:
    """Refuse a try on which an external member failed, though the study was predicted without it.

    Args:
        record: of the run that tried the bundle.

    Raises:
        ManifestError: with the member's line.
    """
    try:
        studies = json.loads(record.read_text("utf-8"))["studies"]
        lines = [str(line) for study in studies for line in study["problems"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise ManifestError(
            f"{record.name}: found no record of the try, expected one with each study's problems"
        ) from None
    for line in lines:
        if f": {LEFT_OUT}" in line and " left out (" in line:
            raise ManifestError(f"{line}, expected an answer to the study that sealing tries it on")
