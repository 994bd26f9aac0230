"""The oddities of the competition's data, by name; by default each occurs at its real rate."""

from __future__ import annotations

from lumbar.errors import CohortError
from lumbar.io.arguments import did_you_mean

# Name: share of studies, from counts in the public tables; where there is no count, a small guess.
RATES = {
    "missing_t1": 2 / 1975,
    "missing_t2": 1 / 1975,
    "two_t1": 7 / 1975,
    "several_axial": 335 / 1975,
    "missing_labels": 185 / 1975,
    "partial_axial": 0.25,
    "swapped_sides": 1 / 1975,
    "reversed_order": 0.36,
    "instance_gaps": 0.06,
    "large_instances": 0.01,
    "mixed_blocks": 0.5,
    "mixed_sizes": 0.02,
    "non_square": 0.125,
    "rescale": 0.18,
    "monochrome1": 0.004,
    "missing_window": 0.03,
    "multi_window": 0.03,
    "missing_optional_tags": 0.05,
    "incomplete_points": 75 / 1974,
    "one_sided_points": 0.01,
    "transitional": 0.09,
    "other_syntax": 0.01,
    "short_series": 0.02,
}
NAMES = tuple(RATES)
_PER_STUDY = 4  # pitfalls of each study in the mode `all`


def parse(text: str) -> tuple[str, ...]:
    """Parse the argument of --pitfalls: real, none, all, or names separated by commas.

    Raises:
        CohortError: an unknown name, or none.
    """
    if text in ("real", "none", "all"):
        return (text,)
    chosen = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in chosen if name not in RATES]
    if unknown or not chosen:
        raise CohortError(
            f"--pitfalls: found {', '.join(unknown) or 'nothing'}, expected real, none, all or names of "
            f"{', '.join(NAMES)}{did_you_mean(unknown[0], NAMES) if unknown else ''}"
        )
    return chosen


def draw(seed: int, index: int, mode: tuple[str, ...]) -> frozenset[str]:
    """Pitfalls of one study; the mode `all` gives each study some, and each pitfall to at least one of 30 studies."""
    from lumbar_phantom.streams import stream  # numpy comes only with it

    if mode == ("none",):
        return frozenset()
    if mode == ("real",):
        chance = stream(seed, index, "pitfalls").random(len(NAMES))
        return frozenset(name for name, c in zip(NAMES, chance, strict=True) if c < RATES[name])
    if mode == ("all",):
        n = len(NAMES)
        chosen = {NAMES[(index + 6 * k) % n] for k in range(_PER_STUDY)}
        return frozenset(chosen - {"missing_t2"} if "missing_t1" in chosen else chosen)
    return frozenset(mode)
