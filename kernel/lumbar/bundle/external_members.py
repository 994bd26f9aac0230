"""External members of a bundle: their code imported, their model loaded, their probe compared."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lumbar.bundle.external_code import code_that_may_run, import_member, reason
from lumbar.bundle.external_probe import check_member_probe
from lumbar.bundle.manifest import Manifest
from lumbar.bundle.safetensors_file import check_safetensors
from lumbar.errors import LumbarError, ManifestError
from lumbar.stages.classifiers import Classifier
from lumbar.stages.external import ExternalMember, on_device


def load_members(manifest: Manifest, device: str) -> dict[str, ExternalMember]:
    """The external members of a bundle by name, each proven by its probe.

    Raises:
        ManifestError: code that may not run or is not what was sealed, a file that is no safetensors, a ``load`` that
            raises, or an answer that is not the recorded one.
    """
    return {one.name: _load(manifest, one, device) for one in manifest.classifiers if one.external is not None}


def _load(manifest: Manifest, one: Classifier, device: str) -> ExternalMember:
    assert one.external is not None
    folder, code = code_that_may_run(manifest.folder, one.name, one.external, is_trusted=manifest.trusts_members)
    weights = {str(entry.config["name"]): manifest.path(entry) for entry in manifest.of_stage(one.name)}
    member = load_member(one, folder, code, weights, device)
    where = f"external member {one.name}"
    with one_line_each(where, folder, device):
        check_member_probe(member, one.external.probe, where)
    return member


def load_member(
    one: Classifier, folder: Path, code: Mapping[str, bytes], weights: Mapping[str, Path], device: str
) -> ExternalMember:
    """Import a member's module and let it load its networks.

    Args:
        one: its entry in the manifest.
        folder: where its code lies.
        code: content of each file by its place (``external_code.read_code``).
        weights: its safetensors files by the names that its ``load`` knows them by.
        device: where its networks go.

    Raises:
        ManifestError: as ``load_members``, but for the probe.
    """
    for path in weights.values():
        check_safetensors(path)
    module = import_member(one.name, folder, code)
    with (
        one_line_each(f"external member {one.name}: load", folder, device),
        _as_it_was(code, weights) as own,
        on_device(device),
    ):
        model = module.load(own, device)
    return ExternalMember(one, model, module.predict, device)


@contextmanager
def one_line_each(where: str, folder: Path, device: str = "cpu") -> Iterator[None]:
    """Turn whatever a member's code raises into one line; what a GPU raises stays, for the run to go on without it.

    Raises:
        ManifestError: in the place of what was raised.
    """
    try:
        yield
    except LumbarError as error:
        text = str(error)
        raise ManifestError(text if text.startswith(where) else f"{where}: {text}") from None
    except (Exception, SystemExit) as error:
        if device != "cpu" and "CUDA" in str(error):
            raise
        raise ManifestError(f"{where}: raised {reason(error, folder)}, expected to end without") from None


@contextmanager
def _as_it_was(code: Mapping[str, bytes], weights: Mapping[str, Path]) -> Iterator[Path]:
    """The member's folder as its maker had it: weights under their own names, and all that is listed beside the code.

    It is there while ``load`` runs; the bundle itself has other names, and cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="lumbar-member-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        for place, content in code.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_bytes(content)
        for name, path in weights.items():
            try:
                os.symlink(os.path.abspath(path), folder / name)
            except OSError:  # a file system without links
                shutil.copyfile(path, folder / name)
        yield folder
