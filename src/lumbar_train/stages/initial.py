"""Fits that start from the weights of another run, or of a bundle: tensors of the same name and shape, none that leaks.

A run notes which studies each fit has seen. A bundle does not, so only one that was trained on phantoms is a start, and
only for studies that are none: what ships, fitted on to the studies of a hospital.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from lumbar.bundle.manifest import FILE_NAME, Manifest, file_sha256, read_manifest
from lumbar.errors import ManifestError
from lumbar_train.data.folds import fold_name, is_full
from lumbar_train.errors import LeakError, TrainingError
from lumbar_train.files import read_object
from lumbar_train.outputs.kept import FILE as RECIPE
from lumbar_train.outputs.oof import read_seen


@dataclass(frozen=True)
class Agreement:
    """Which tensors of a network another run's file has in the same shape; ``differing``: the first of the others."""

    same: tuple[str, ...]
    total: int
    differing: tuple[str, ...]

    def text(self) -> str:
        """Such as ``210 of 212 tensors; not head.weight (3, 64), here (5, 64)``."""
        others = self.total - len(self.same)
        more = f" and {others - len(self.differing)} more" if others > len(self.differing) else ""
        return f"{len(self.same)} of {self.total} tensors" + (
            f"; not {', '.join(self.differing)}{more}" if others else ""
        )


@dataclass(frozen=True)
class Initial:
    """Another run's folder, or a bundle.

    Attributes:
        run: the folder.
        recipe: that its weights were trained by.
        digest: of the weights that it holds.
        bundle: its manifest, where it is no run.
    """

    run: Path
    recipe: str
    digest: str
    bundle: Manifest | None = None

    @classmethod
    def of(cls, run: Path, is_synthetic: bool) -> Initial:
        """Look at a folder.

        Args:
            run: a run, or a sealed bundle or export.
            is_synthetic: the cohort at hand consists of phantoms.

        Raises:
            TrainingError: it holds no weights of a run, and no whole bundle that has seen phantoms alone.
            LeakError: a bundle that may have seen the studies at hand.
        """
        notes = sorted(run.glob("*/*.seen.json"))
        if notes:
            hashes = [f"{path.parent.name}/{path.name} {read_object(path).get('sha256')}" for path in notes]
            return cls(run, str(read_object(run / RECIPE).get("name", "unknown")), _digest(hashes))
        if not (run / FILE_NAME).is_file():
            raise TrainingError(
                f"--init {run}: found no weights, expected a folder that a training has left, or a sealed bundle"
            )
        return cls._of_bundle(run, is_synthetic)

    @classmethod
    def _of_bundle(cls, folder: Path, is_synthetic: bool) -> Initial:
        try:
            bundle = read_manifest(folder)
        except ManifestError as error:
            raise TrainingError(f"--init {error}") from None
        if is_synthetic or bundle.cohort.get("description") != "synthetic":
            raise LeakError(
                f"--init {folder}: found a bundle ({bundle.origin}), which does not tell the studies that it has seen; "
                "expected the folder of its run, or weights of phantoms for studies that are none"
            )
        for entry in bundle.weights:
            path = bundle.path(entry)
            if not path.is_file() or file_sha256(path) != entry.sha256:
                what = "another file" if path.is_file() else "no file"
                raise TrainingError(
                    f"--init {path}: found {what}, expected what {FILE_NAME} lists (build_dataset.py seals a bundle)"
                )
        hashes = sorted(f"{entry.stage} {entry.fold} {entry.sha256}" for entry in bundle.weights)
        return cls(folder, bundle.recipe, _digest(hashes), bundle)

    def weights(self, stages: Sequence[str], fold: int, held_out: Iterable[int], suffix: str = "") -> Path | None:
        """The file that a fit starts from: of the same fold, else of another, but none that has seen a held-out study.

        Args:
            stages: names under which the other run may have the stage, the nearest first.
            fold: that is fitted.
            held_out: studies that the fit must not know.
            suffix: of the fit.

        Returns:
            None where the other run has nothing of these stages.

        Raises:
            LeakError: all that it has of them has seen a study that is held out.
        """
        if self.bundle is not None:  # of phantoms, and no study at hand is one
            return self._of_stages(self.bundle, stages, fold)
        unseen, leak = set(map(int, held_out)), ""
        for path in self._candidates(stages, fold, suffix):
            seen = read_seen(path)[1]
            if both := sorted(seen & unseen):
                leak = leak or f"{path}: has seen study {both[0]}, which {fold_name(fold)} holds out"
                continue
            return path
        if leak:
            raise LeakError(
                f"--init {leak} ({len(unseen)} studies), expected weights that have not; "
                f"the same folds are --fold-file {self.run / 'folds.csv'}"
            )
        return None

    @staticmethod
    def _of_stages(bundle: Manifest, stages: Sequence[str], fold: int) -> Path | None:
        for stage in stages:
            entries = sorted(bundle.of_stage(stage), key=lambda entry: (entry.fold != fold, not is_full(entry.fold)))
            if entries:
                return bundle.path(entries[0])
        return None

    def _candidates(self, stages: Sequence[str], fold: int, suffix: str) -> Iterator[Path]:
        for stage in dict.fromkeys(stages):
            folder = self.run / stage
            first = [folder / f"{fold_name(fold)}{suffix}.safetensors", folder / f"{fold_name(fold)}.safetensors"]
            first += [folder / "full.safetensors"] if is_full(fold) else []
            for path in dict.fromkeys([*first, *sorted(folder.glob("*.safetensors"))]):
                if path.is_file():
                    yield path

    def apply(self, network: nn.Module, stages: Sequence[str], fold: int, held_out: Iterable[int], suffix: str) -> None:
        """Fill what agrees of a network, in place; a fit on parts for which there is nothing unseen starts as usual.

        Raises:
            LeakError: as ``weights``.
        """
        path = self._start(stages, fold, held_out, suffix)
        if path is None:
            return
        tensors = safetensors.torch.load_file(path)
        own = network.state_dict()
        with torch.no_grad():
            for name in agreement(path, network).same:
                own[name].copy_(tensors[name])

    def seen(self, stages: Sequence[str], fold: int, held_out: Iterable[int], suffix: str) -> frozenset[int]:
        """The studies that a fit knows already by the weights that it starts from; none of a bundle's phantoms.

        Raises:
            LeakError: as ``weights``.
        """
        path = self._start(stages, fold, held_out, suffix)
        return frozenset() if path is None or self.bundle is not None else read_seen(path)[1]

    def _start(self, stages: Sequence[str], fold: int, held_out: Iterable[int], suffix: str) -> Path | None:
        try:
            return self.weights(stages, fold, held_out, suffix)
        except LeakError:
            if suffix:
                return None
            raise


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def agreement(path: Path, network: nn.Module) -> Agreement:
    """Compare a file's names and shapes with a network's, which may be without memory.

    Raises:
        TrainingError: the file is no safetensors.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, safetensors.SafetensorError) as error:
        raise TrainingError(f"--init {path}: not readable ({error}), expected safetensors") from None
    own = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    same = tuple(name for name, shape in own.items() if shapes.get(name) == shape)
    others = [f"{name} {shapes.get(name, 'absent')}, here {own[name]}" for name in own if name not in same]
    return Agreement(same, len(own), tuple(others[:2]))
