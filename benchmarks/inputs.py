"""What benchmarks that need two inputs do without them: ``make bench`` gives none."""

from __future__ import annotations

import argparse
from pathlib import Path


def are_given(parser: argparse.ArgumentParser, name: str, without: str, **inputs: object) -> bool:
    """Whether both inputs of a benchmark are given; where none is, a line says so, and one alone is wrong usage.

    Args:
        parser: of the benchmark's options.
        name: of the benchmark.
        without: what then does not happen.
        inputs: value by option, two of them, None where it was not given.
    """
    missing = [option for option, value in inputs.items() if value is None]
    if len(missing) == len(inputs):
        print(f"{name}: no {' and '.join(f'--{option}' for option in inputs)} given, so {without}")
        return False
    if missing:
        parser.error(f"--{missing[0]}: found none, expected it beside the other one")
    return True


def add_calibration_options(parser: argparse.ArgumentParser, n_studies: int, writes: bool = True) -> None:
    """The options that measurements of a folder's weights share, but ``--data``; ``writes``: those of a calibration."""
    parser.add_argument("--split", default="train")
    parser.add_argument("--weights", type=Path, help="a folder with weights and their manifest")
    parser.add_argument("--studies", type=int, default=n_studies, help="of each cohort; default: %(default)s")
    if writes:
        parser.add_argument("--write", action="store_true", help="put the numbers into the folder's manifest")
