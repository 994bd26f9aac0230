"""External members: networks from elsewhere that grade levels beside the kit's own classifiers (docs/add-a-model.md).

A member is a folder with a module ``member.py``, which has two functions::

    def load(folder: Path, device: str) -> Any            # its networks, from the .safetensors files in the folder
    def predict(model: Any, case: Case) -> tuple[logits, mask]

``predict`` returns logits (C, 5 levels, 3 grades) of the C conditions that the member answers, in the order in which
it names them, and a mask (C, 5) of True where they rest on images. What it returns is checked here. Where it raises,
the member is left out of this study; the study goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lumbar.dicom import Stack
from lumbar.errors import ManifestError
from lumbar.io.text import one_line
from lumbar.labels import LEVELS
from lumbar.stages.classifiers import SAGITTAL, Classifier, Config, crop_config, view_of
from lumbar.stages.classify import LevelTensors, Logits, Mask, series_pairs
from lumbar.stages.crop import level_slices
from lumbar.stages.crop_layout import Look, crops_shape, filled
from lumbar.stages.points import Localisation
from lumbar.study import Study

GRADES = 3
Returned = tuple[NDArray[np.float32], NDArray[np.bool_]]


@dataclass(frozen=True)
class Case:
    """One study as a member's ``predict`` is given it.

    Attributes:
        study: its stacks by description, in patient space; their arrays cannot be written. ``study.normalised(stack,
            index)`` is a slice as float32 in 0..1, ``stack.to_patient`` and ``lumbar.geometry`` lead from pixels to mm.
        localisation: canal and foraminal points, and the axial slice of each level, as the bundle's localisers find
            them; what was not found is absent.
        crops: where ``member.json`` asks for crops, those of all five levels: ``images`` (5, …, size, size) float32 in
            0..1, ``mask`` (5, …) bool and ``position_mm`` (5, …), tensors on the CPU. One entry for each series, or
            pair of a sagittal T2 and T1 series, with ``per_series``; else one. Empty where nothing is shown.
        device: where the member's networks are.
        augment: whether there is time for test-time augmentation.
        all_folds: whether there is time for all sets of weights, and not the first alone.
    """

    study: Study
    localisation: Localisation
    crops: tuple[LevelTensors, ...]
    device: str
    augment: bool
    all_folds: bool


class ExternalMember:
    """An external member with its model loaded.

    Args:
        listed: what the manifest says of it.
        model: what its ``load`` returned.
        function: its ``predict``.
        device: where its networks are.
    """

    def __init__(self, listed: Classifier, model: Any, function: Callable[[Any, Case], Any], device: str) -> None:
        self.listed = listed
        self._model, self._function, self._device = model, function, device
        self._lock = threading.Lock()
        self._crop = crop_config(listed.view, dict(listed.crop)) if listed.crop else None

    def answer(
        self, study: Study, localisation: Localisation, problems: list[str], *, flip: bool, all_folds: bool
    ) -> tuple[Logits, Mask]:
        """Logits (5 conditions, 5 levels, 3) and mask (5, 5); all masked, and a line more, where the member fails.

        Args:
            study: its stacks.
            localisation: the points on them.
            problems: the lines of the study, to which a failure is added once.
            flip: whether there is time for test-time augmentation.
            all_folds: whether there is time for all sets of weights.

        Raises:
            Exception: what a lost GPU raises, which the worker must see.
        """
        try:
            return self.logits(study, localisation, flip=flip, all_folds=all_folds)
        except (Exception, SystemExit) as error:  # whatever somebody's code does
            if self._device != "cpu" and "CUDA error" in str(error):
                raise
            line = f"study {study.study_id}: external member {self.listed.name} left out ({one_line(error)})"
            if line not in problems:
                problems.append(line)
            return np.zeros((5, len(LEVELS), GRADES), np.float32), np.zeros((5, len(LEVELS)), bool)

    def logits(self, study: Study, localisation: Localisation, *, flip: bool, all_folds: bool) -> tuple[Logits, Mask]:
        """Logits (5 conditions, 5 levels, 3) and mask (5, 5), of conditions that the member does not answer masked.

        Raises:
            ManifestError: what ``predict`` returned has another shape or type, or holds no numbers.
            Exception: whatever ``predict`` raises.
        """
        case = Case(
            study=_read_only(study),
            localisation=_copied(localisation),
            crops=() if self._crop is None else crops_of_levels(study, localisation, self._crop),
            device=self._device,
            augment=flip,
            all_folds=all_folds,
        )
        # One study at a time: somebody's code need not be safe for the threads of several studies in flight
        with self._lock, _settings_kept(), on_device(self._device), torch.inference_mode():
            returned = self._function(self._model, case)
        conditions = list(self.listed.conditions)
        values, shown = checked(returned, len(conditions))
        logits, mask = np.zeros((5, len(LEVELS), GRADES), np.float32), np.zeros((5, len(LEVELS)), bool)
        logits[conditions] = np.where(shown[..., None], values, 0)
        mask[conditions] = shown
        return logits, mask


def on_device(device: str) -> AbstractContextManager[object]:
    """Let ``.cuda()`` and ``"cuda"`` in somebody's code mean the worker's own GPU."""
    is_gpu = device.startswith("cuda") and torch.cuda.is_available()
    return torch.cuda.device(device) if is_gpu else nullcontext()


def crops_of_levels(study: Study, localisation: Localisation, config: Config) -> tuple[LevelTensors, ...]:
    """The crops of all five levels for each look, as the kit's own classifiers are given them.

    Looks that show nothing are left out. A member's own training calls this too, so that both see the same.

    Args:
        study: its stacks.
        localisation: the points on them.
        config: sizes of the crops (``stages.classifiers.crop_config``).
    """
    looks: list[Look] = [None]
    if config.per_series:
        is_sagittal = view_of(config) == SAGITTAL
        looks = [*(series_pairs(localisation) if is_sagittal else localisation.axial_series())]
    tensors = []
    for look in looks:
        slices = [level_slices(study, localisation, level, config, look=look) for level in range(len(LEVELS))]
        shape = crops_shape(config, [one for some in slices for one in some])
        crops = [filled(study, some, shape, config.size) for some in slices]
        arrays = zip(*((one.images, one.mask, one.position_mm) for one in crops), strict=True)
        tensors.append(LevelTensors(*(torch.from_numpy(np.stack(array)) for array in arrays)))
    return tuple(one for one in tensors if one.mask.any())


def checked(returned: Any, n_conditions: int) -> Returned:
    """What a ``predict`` returned, as arrays: logits (C, 5, 3) float32 and mask (C, 5) bool.

    Raises:
        ManifestError: another shape or type, or values under the mask that are no numbers.
    """
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise ManifestError(f"predict: found {_kind(returned)} returned, expected two: logits and mask")
    logits, mask = (_array(value) for value in returned)
    shape = (n_conditions, len(LEVELS), GRADES)
    if logits.shape != shape or logits.dtype.kind not in "fiu":
        raise ManifestError(f"predict: found logits {_kind(logits)}, expected numbers {shape}")
    if mask.shape != shape[:2] or mask.dtype.kind != "b":
        raise ManifestError(f"predict: found a mask {_kind(mask)}, expected bool {shape[:2]}")
    with np.errstate(over="ignore"):
        values = logits.astype(np.float32)
    bad = mask & ~np.isfinite(values).all(axis=-1)
    if bad.any():
        row, level = (int(place) for place in np.argwhere(bad)[0])
        raise ManifestError(
            f"predict: found logits {values[row, level].tolist()} of condition {row} at {LEVELS[level]}, "
            "expected finite numbers where the mask is True"
        )
    return values, mask


def _array(value: Any) -> NDArray[Any]:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.is_floating_point() else value).numpy()
    try:
        return np.asarray(value)
    except ValueError:  # lists of unequal lengths
        return np.asarray(None)


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return f"{len(value)} values" if isinstance(value, tuple | list) else type(value).__name__


def _read_only(study: Study) -> Study:
    """The same study, whose arrays and lists a member cannot change for those after it."""
    series = {name: [_read_only_stack(stack) for stack in stacks] for name, stacks in study.series.items()}
    return replace(study, series=series, problems=list(study.problems))


def _read_only_stack(stack: Stack) -> Stack:
    changes: dict[str, Any] = {}
    for one in fields(stack):
        value = getattr(stack, one.name)
        if isinstance(value, np.ndarray):
            changes[one.name] = value.view()
            changes[one.name].flags.writeable = False
        elif isinstance(value, list):
            changes[one.name] = list(value)
    return replace(stack, **changes)


def _copied(localisation: Localisation) -> Localisation:
    """The same points, in lists of their own."""
    return replace(
        localisation,
        sagittal_points=list(localisation.sagittal_points),
        axial_levels=list(localisation.axial_levels),
        levels_mm=dict(localisation.levels_mm),
        problems=list(localisation.problems),
        readings=list(localisation.readings),
        filled=list(localisation.filled),
    )


@contextmanager
def _settings_kept() -> Iterator[None]:
    """Give torch back its threads, default type and default device, whatever a member sets."""
    n_threads, dtype, device = torch.get_num_threads(), torch.get_default_dtype(), torch.get_default_device()
    try:
        yield
    finally:
        if torch.get_num_threads() != n_threads:
            torch.set_num_threads(n_threads)
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)
