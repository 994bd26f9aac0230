"""What each part of a study's series shows, and whether the chain uses it: every decision with its reason and doubt."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from lumbar.intake import words
from lumbar.intake.parts import Part, StudyParts
from lumbar.intake.weighting import EITHER, STIR, T1, T2, USABLE, weighting_of
from lumbar.labels import AXIAL_T2, SAGITTAL_T1, SAGITTAL_T2

UNDECIDED = "undecided"  # only the images can tell the contrast
BODY = "another part of the body"

_SMALL_VIEW_MM = (80.0, 180.0)  # sagittal fields of view of a joint: five lumbar levels do not fit
_COARSE_MM, _FEW, _FAST_TR = 1.35, 7, 100.0  # pixels, slices and TR (ms) of a localiser
_NEAR_MM = 100.0  # axial slices farther from all sagittal images show something else
_IMAGE_MODALITIES = ("MR", "")
_COMPUTED = {
    "MPR", "MIP", "MINIP", "MINIMUM INTENSITY PROJECTION", "PROJECTION IMAGE", "COMPOSED", "SUBTRACTION", "SUB", "ADC",
    "ADC_UNSPECIFIED", "EADC", "FA", "TRACEW", "REFORMATTED", "T1 MAP", "T2 MAP", "T2_STAR MAP", "R2", "R2_STAR",
    "PHASE MAP", "CSA MPR", "CSAPARALLEL", "COMP_SP", "STITCHED", "VOLUME RENDER", "CSA REPORT", "SCREEN SAVE", "SSAVE",
}  # fmt: skip
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_PREFERRED = ("in phase", "water")  # Dixon parts that can take the place of an ordinary series, the better first


@dataclass
class Decision:
    """One part of a series, and what became of it.

    Attributes:
        part: the images.
        kind: one of the three descriptions, ``undecided``, or empty where it is left out.
        reason: why.
        doubt: what speaks against it, or is missing; empty where nothing is.
        contrast: T1, T2, STIR or another; empty where nothing tells, or nothing asked.
        cause: of a part that is left out, in one word or two.
    """

    part: Part
    kind: str
    reason: str
    doubt: str = ""
    contrast: str = ""
    cause: str = ""

    def leave_out(self, cause: str, reason: str, doubt: str = "") -> None:
        """Leave the part out after all."""
        self.kind, self.cause, self.reason, self.doubt = "", cause, reason, doubt


def decide(study: StudyParts) -> list[Decision]:
    """Decide on each part of a study by itself, then compare them with each other."""
    decisions = [_decide_alone(part) for part in study.parts]
    compare(decisions)
    return decisions


def compare(decisions: list[Decision]) -> None:
    """Leave out what another part of the same study shows better."""
    _leave_out_repeated_dixon(decisions)
    _leave_out_worse(decisions, "derived", _is_derived, "computed from other images (ImageType DERIVED or SECONDARY)")
    _leave_out_worse(decisions, "post-contrast", _has_contrast, "after a contrast agent")
    _leave_out_far_axial(decisions)


# ---- one part alone -----------------------------------------------------------------------------------------------


def _decide_alone(part: Part) -> Decision:
    for check in (_no_image, _other_modality, _secondary_capture, _other_body_part, _localiser, _computed, _dixon):
        cause, reason = check(part)
        if cause:
            return Decision(part, "", reason, cause=cause)
    plane, plane_reason, plane_doubt = _plane(part)
    if plane not in ("sagittal", "axial"):
        return Decision(part, "", plane_reason, plane_doubt, cause=plane or "plane unknown")
    weighting = weighting_of(part.first)
    against = [plane_doubt, weighting.doubt, *_body_contradictions(part)]
    reason = f"{plane_reason}; {weighting.reason}"
    doubt = "; ".join(filter(None, against))
    if plane == "sagittal" and weighting.name == T1 and _has_contrast(part):
        return Decision(part, "", f"{reason}; after a contrast agent", doubt, T1, "post-contrast")
    if not weighting.name:
        return Decision(part, UNDECIDED, reason, doubt)
    kinds = {("sagittal", T1): SAGITTAL_T1, ("sagittal", T2): SAGITTAL_T2, ("sagittal", STIR): SAGITTAL_T2}
    kinds |= {("sagittal", EITHER): SAGITTAL_T2, ("axial", T2): AXIAL_T2}
    if (plane, weighting.name) in kinds:
        return Decision(part, kinds[plane, weighting.name], reason, doubt, weighting.name)
    cause = weighting.name if weighting.name not in USABLE else f"{plane} {weighting.name}"
    return Decision(part, "", f"{reason}: no kind that is graded", doubt, weighting.name, cause)


def _no_image(part: Part) -> tuple[str, str]:
    if any(header.has_pixels and all(header.shape) for header in part.headers):
        return "", ""
    return "no image", "holds no image"


def _other_modality(part: Part) -> tuple[str, str]:
    modalities = sorted({header.modality for header in part.headers})
    if all(modality in _IMAGE_MODALITIES for modality in modalities):
        return "", ""
    shown = ", ".join(name if name.isalpha() and len(name) <= 16 else "unknown" for name in modalities)
    if len(modalities) > 1:
        return "mixed modalities", f"modalities {shown} in one series, expected MR alone"
    return "modality", f"modality {shown}, expected MR"


def _secondary_capture(part: Part) -> tuple[str, str]:
    if part.first.sop_class == _SECONDARY_CAPTURE or part.first.sop_class.startswith(f"{_SECONDARY_CAPTURE}."):
        return "secondary capture", "a secondary capture (SOPClassUID)"
    return "", ""


def _other_body_part(part: Part) -> tuple[str, str]:
    """Another part of the body by words of the series, or by a field of view that five levels do not fit into."""
    first = part.first
    is_lumbar = words.names_lumbar(part.text) or words.names_lumbar(first.body_part)
    if is_lumbar:
        return "", ""
    named = words.other_parts(part.text)
    if named:
        return BODY, f"words {', '.join(named)}, expected a lumbar spine"
    named = words.other_parts(first.body_part)
    if named and not (words.names_lumbar(first.study_words) or words.names_spine(part.text)):
        return BODY, f"BodyPartExamined {', '.join(named)}, expected a lumbar spine"
    named = words.other_parts(first.study_words)
    is_spine = any(words.names_spine(text) for text in (part.text, first.body_part, first.study_words))
    if named and not is_spine and not words.names_lumbar(first.study_words):
        return BODY, f"StudyDescription {', '.join(named)}, expected a lumbar spine"
    height = part.height_mm
    is_small = part.plane == "sagittal" and height is not None and _SMALL_VIEW_MM[0] < height < _SMALL_VIEW_MM[1]
    if is_small and not is_spine and not words.names_lumbar(first.study_words):
        return BODY, f"field of view of {height:.0f} mm, as of a joint; five levels need {_SMALL_VIEW_MM[1]:.0f} mm"
    return "", ""


def _body_contradictions(part: Part) -> list[str]:
    first = part.first
    named = words.other_parts(first.body_part)
    return [f"BodyPartExamined says {', '.join(named)}"] if named and not words.names_lumbar(first.body_part) else []


def _localiser(part: Part) -> tuple[str, str]:
    first = part.first
    if "LOCALIZER" in first.image_type or "SCOUT" in first.image_type:
        return "localiser", "ImageType LOCALIZER"
    if words.names_localiser(part.text):
        return "localiser", "a word for localiser"
    if part.n_planes > 1:
        return "localiser", f"one series in {part.n_planes} planes, as localisers are"
    spacing = first.spacing_mm
    is_coarse = spacing is not None and max(spacing) >= _COARSE_MM and part.n_slices <= _FEW
    if is_coarse and first.tr_ms is not None and first.tr_ms < _FAST_TR:
        return "localiser", f"{part.n_slices} coarse slices of a fast sequence (TR {first.tr_ms:g} ms)"
    return "", ""


def _computed(part: Part) -> tuple[str, str]:
    terms = {term for header in part.headers for term in header.image_type}
    computed = sorted(terms & _COMPUTED)
    if computed:
        return "derived", f"ImageType {computed[0]}"
    if words.names_derived(part.text):
        return "derived", "a word for computed images"
    phase = {"P", "PHASE", "R", "REAL", "I", "IMAGINARY"} & set(part.first.image_type[2:4])
    magnitude = {"M", "MAGNITUDE"} & set(part.first.image_type)
    return ("derived", f"ImageType {sorted(phase)[0]}") if phase and not magnitude else ("", "")


def _dixon(part: Part) -> tuple[str, str]:
    if part.dixon in ("opposed phase", "fat"):
        return "Dixon", f"the {part.dixon} part of a Dixon acquisition"
    return "", ""


def _plane(part: Part) -> tuple[str, str, str]:
    """Plane, reason and doubt."""
    named = words.planes(part.text)
    if part.plane:
        is_other = len(named) == 1 and named[0] != part.plane
        doubt = f"its words say {named[0]}" if is_other else ""
        return part.plane, f"{part.plane} by its direction cosines", doubt
    if len(named) == 1:
        return named[0], f"word {named[0]}", "no ImageOrientationPatient"
    return "", "no ImageOrientationPatient and no word for its plane", "its plane is not known"


# ---- parts beside each other --------------------------------------------------------------------------------------


def _is_derived(part: Part) -> bool:
    return bool({"DERIVED", "SECONDARY"} & set(part.first.image_type[:2])) and not part.dixon


def _has_contrast(part: Part) -> bool:
    return words.names_contrast(part.text) or any(header.contrast_agent for header in part.headers)


def _used(decisions: Iterable[Decision]) -> list[Decision]:
    return [decision for decision in decisions if decision.kind]


def _leave_out_worse(decisions: list[Decision], cause: str, is_worse: Callable[[Part], bool], reason: str) -> None:
    """Leave out what has a property, where a series of the same kind does not have it; else note a doubt."""
    for decision in _used(decisions):
        if decision.kind == UNDECIDED or not is_worse(decision.part):
            continue
        others = [
            other
            for other in _used(decisions)
            if (other.kind, other.contrast) == (decision.kind, decision.contrast) and not is_worse(other.part)
        ]
        if others:
            decision.leave_out(cause, f"{reason}; another series shows the same and is not")
        else:
            decision.doubt = "; ".join(dict.fromkeys(filter(None, (decision.doubt, reason))))


def _leave_out_repeated_dixon(decisions: list[Decision]) -> None:
    """Use the best part of a Dixon acquisition alone, and none beside an ordinary series that shows the same."""
    ranked = sorted(
        (decision for decision in _used(decisions) if decision.part.dixon),
        key=lambda decision: _PREFERRED.index(decision.part.dixon),
    )
    kept = [decision for decision in _used(decisions) if not decision.part.dixon]
    for decision in ranked:
        same = next((one for one in kept if _is_same_view(one, decision) or _is_ordinary(one, decision)), None)
        if same is None:
            note = f"; the {decision.part.dixon} part of a Dixon acquisition"
            decision.reason = decision.reason.removesuffix(note) + note
            kept.append(decision)
            continue
        better = f"its {same.part.dixon} part" if same.part.dixon else "an ordinary series"
        what = "the same slices" if same.part.is_at(decision.part) else "the same contrast"
        reason = f"the {decision.part.dixon} part of a Dixon acquisition; {better} shows {what}"
        decision.leave_out("Dixon", reason)


def _is_ordinary(one: Decision, other: Decision) -> bool:
    """Whether ``one`` is no part of a Dixon acquisition, and of the kind and contrast of ``other``."""
    return not one.part.dixon and UNDECIDED != one.kind == other.kind and one.contrast == other.contrast


def _is_same_view(one: Decision, other: Decision) -> bool:
    is_open = UNDECIDED in (one.kind, other.kind) or (
        one.kind == other.kind and EITHER in (one.contrast, other.contrast)
    )
    is_same = one.contrast == other.contrast or is_open
    return one.part.plane == other.part.plane and is_same and one.part.is_at(other.part)


def _leave_out_far_axial(decisions: list[Decision]) -> None:
    """Leave out axial series that lie nowhere near the sagittal images: another part of the body in the same study."""
    corners = [decision.part.corners() for decision in _used(decisions) if decision.part.plane == "sagittal"]
    points = np.concatenate(corners) if corners else np.zeros((0, 3))
    if not len(points):
        return
    low, high = points.min(axis=0) - _NEAR_MM, points.max(axis=0) + _NEAR_MM
    for decision in _used(decisions):
        if decision.part.plane != "axial" or not len(own := decision.part.corners()):
            continue
        centres = own.reshape(-1, 4, 3).mean(axis=1)
        if not ((centres > low) & (centres < high)).all(axis=1).any():
            decision.leave_out(BODY, "lies more than 100 mm away from all sagittal images of the study")
