"""Which contrast a series shows, from the numbers of its acquisition and from words: T1, T2, STIR or another.

Times are in ms. At usual fields a T1 has TR below 1200 and TE below 40, a T2 has TE of 60 or more with a long TR; an
inversion of 80 to 350 ms suppresses fat (STIR), one of 400 to 1300 with a short TE gives a T1 (T1 FLAIR).
"""

from __future__ import annotations

from dataclasses import dataclass

from lumbar.intake import words
from lumbar.intake.headers import ImageHeader

T1, T2, STIR, PD = "T1", "T2", "STIR", "PD"
EITHER = "T2/STIR"  # words that name both, as the competition's table does
USABLE = (T1, T2, STIR, EITHER)

_SHORT_TR, _LONG_TR = 1200.0, 1300.0
_SHORT_TE, _LONG_TE, _PD_TE, _LATE_TE = 40.0, 60.0, 45.0, 250.0
_STIR_TI, _T1_TI = (50.0, 350.0), (400.0, 1300.0)
_FAST_TR, _FAST_TE, _LOW_FLIP = 100.0, 12.0, 45.0
_PROJECTION_MM = 20.0  # a slice so thick is a projection, as in myelography
_OTHERS = ("diffusion", "perfusion", "angiography", "myelography", "map", "T2*", "gradient echo", "FLAIR")
_ENHANCED = {"T1": T1, "T2": T2, "STIR": STIR, "PROTON_DENSITY": PD, "T2_STAR": "T2*", "DIFFUSION": "diffusion",
             "FLUID_ATTENUATED": "FLAIR", "PERFUSION": "perfusion", "TOF": "angiography"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Weighting:
    """A contrast: ``name`` is T1, T2, STIR, PD or another; empty where nothing tells. With its reason, and a doubt."""

    name: str
    reason: str
    doubt: str = ""


def weighting_of(header: ImageHeader) -> Weighting:
    """The contrast of a series, from the header of one of its images."""
    named = _by_words(header)
    measured = _by_numbers(header)
    if not measured.name:
        return _without_numbers(header, named)
    if named.name == EITHER and measured.name in (T2, STIR):
        return measured
    if named.name in (STIR, EITHER) and measured.name in (T2, PD):  # its inversion need not stand in the header
        return Weighting(STIR, f"{named.reason}; {measured.reason}")
    if named.name and named.name != measured.name and {named.name, measured.name} != {T2, STIR}:
        if measured.doubt:  # the numbers leave it open, a word decides
            return Weighting(named.name, f"{named.reason}; {measured.reason}", measured.doubt)
        doubt = f"its words say {named.name}, its times {measured.name}"
        if named.name in _OTHERS:  # such words are written by the protocol, and times alone do not contradict them
            return Weighting(named.name, named.reason, doubt if measured.name in USABLE else "")
        return Weighting(measured.name, measured.reason, doubt)
    if measured.doubt and named.name:
        return Weighting(named.name, f"{measured.reason}; {named.reason}")
    return measured


def _without_numbers(header: ImageHeader, named: Weighting) -> Weighting:
    times = ", ".join(name for name, value in (("RepetitionTime", header.tr_ms), ("EchoTime", header.te_ms))
                      if value is None)  # fmt: skip
    if named.name:
        return Weighting(named.name, named.reason, f"words alone decide, {times} absent" if times else "")
    lacking = f"{times} absent" if times else "its times fit no contrast"
    return Weighting("", f"headers do not tell its contrast: {lacking}, no word for it")


def _by_words(header: ImageHeader) -> Weighting:
    names = words.weightings(header.description) or words.weightings(header.sequence_name)
    others = [name for name in names if name in _OTHERS]
    if others:
        is_t1_flair = others == ["FLAIR"] and T1 in names
        return Weighting(T1, "words T1 FLAIR") if is_t1_flair else Weighting(others[0], f"word {others[0]}")
    if STIR in names:
        return Weighting(EITHER, "words T2 and STIR") if T2 in names else Weighting(STIR, "word STIR")
    plain = [name for name in names if name in (T1, T2, PD)]
    if set(plain) == {T2, PD}:  # "PD/T2": the echo decides
        return Weighting("", "")
    return Weighting(plain[0], f"word {plain[0]}") if len(plain) == 1 else Weighting("", "")


def _by_numbers(header: ImageHeader) -> Weighting:
    """The contrast by sequence and times; with a doubt where they leave it open."""
    if header.acquisition_contrast in _ENHANCED:
        name = _ENHANCED[header.acquisition_contrast]
        return Weighting(name, f"AcquisitionContrast {header.acquisition_contrast}")
    sequence, tr, te = set(header.sequence), header.tr_ms, header.te_ms
    if "EP" in sequence or header.is_diffusion or "DIFFUSION" in header.image_type:
        return Weighting("diffusion", "echo-planar or diffusion-weighted")
    is_gradient = ("GR" in sequence or "GRADIENT" in sequence) and not sequence & {"SE", "SPIN"}
    is_fast = tr is not None and te is not None and tr < _FAST_TR and te < _FAST_TE
    has_low_flip = header.flip_deg is not None and header.flip_deg < _LOW_FLIP and "SE" not in sequence
    if is_gradient or is_fast or (has_low_flip and tr is not None and tr < _SHORT_TR):
        return Weighting("gradient echo", _times(header, "gradient echo"))
    if (te is not None and te >= _LATE_TE) or (header.thickness_mm or 0.0) >= _PROJECTION_MM:
        return Weighting("myelography", _times(header, "heavily T2-weighted, as in myelography"))
    if te is None:
        return _by_repetition(header)
    return _spin_echo(header, te)


def _by_repetition(header: ImageHeader) -> Weighting:
    if header.tr_ms is not None and header.tr_ms < 900.0:
        return Weighting(T1, _times(header, "short TR"), "EchoTime absent")
    return Weighting("", "")


def _spin_echo(header: ImageHeader, te: float) -> Weighting:
    tr, ti = header.tr_ms, header.ti_ms
    if te < _SHORT_TE and tr is not None and tr < _SHORT_TR:
        return Weighting(T1, _times(header, "short TR and TE"))
    is_inverted = "IR" in header.sequence
    if ti is not None and (is_inverted or not header.sequence):
        if _STIR_TI[0] <= ti <= _STIR_TI[1]:
            return Weighting(STIR, _times(header, "inversion that suppresses fat"))
        if _T1_TI[0] <= ti <= _T1_TI[1] and te < _SHORT_TE:
            return Weighting(T1, _times(header, "inversion recovery with a short TE"))
        if ti > _T1_TI[1]:
            return Weighting("FLAIR", _times(header, "inversion that suppresses fluid"))
    if is_inverted and ti is None:
        name = T1 if te < 25.0 else STIR
        return Weighting(name, _times(header, "inversion recovery"), "InversionTime absent")
    if te >= _LONG_TE:
        doubt = (
            "" if tr is not None and tr >= _LONG_TR else "RepetitionTime absent" if tr is None else "its TR is short"
        )
        return Weighting(T2, _times(header, "long TE"), doubt)
    if tr is None:
        return Weighting("", "")
    if te >= _PD_TE:
        return Weighting(T2, _times(header, "TE between proton density and T2"), "its TE fits PD as well as T2")
    doubt = "" if tr >= 1600.0 else "its TR fits T1 as well as proton density"
    return Weighting(PD, _times(header, "long TR and short TE"), doubt)


def _times(header: ImageHeader, what: str) -> str:
    """A reason with the numbers that it rests on."""
    numbers = (("TR", header.tr_ms), ("TE", header.te_ms), ("TI", header.ti_ms))
    shown = ", ".join(f"{name} {value:g} ms" for name, value in numbers if value is not None)
    sequence = "\\".join(header.sequence[:4])
    if sequence and all(len(part) <= 8 and part.isalpha() for part in header.sequence[:4]):
        shown = ", ".join(filter(None, (shown, f"ScanningSequence {sequence}")))
    return f"{what} ({shown})" if shown else what
