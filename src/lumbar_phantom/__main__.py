"""Command line: ``lumbar-phantom --out ROOT --studies N --seed S``, or ``python -m lumbar_phantom``."""

from __future__ import annotations

import argparse
import sys

from lumbar.errors import LumbarError
from lumbar.io.arguments import Parser, program
from lumbar.io.files import make_folder
from lumbar.io.signals import end_in_order, reason_of
from lumbar.io.text import one_line
from lumbar_phantom import pitfalls

# The keys of dicom_files.SYNTAXES, which cannot be imported before the arguments are known to be right: it is slow.
SYNTAXES = ("rle", "explicit", "implicit", "deflated", "big", "jpeg_lossless", "jpeg_ls", "jpeg_2000")


def parser() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    cli = Parser(prog=program("lumbar_phantom", "lumbar-phantom"), description="Write a synthetic lumbar MR cohort.")
    cli.add_argument("--out", required=True, help="folder to fill, in the competition's layout")
    cli.add_argument("--studies", type=int, required=True, help="number of studies")
    cli.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default 0)")
    cli.add_argument(
        "--pitfalls", default="real", help=f"real (default), none, all, or names: {', '.join(pitfalls.NAMES)}"
    )
    cli.add_argument("--split", choices=("train", "test"), default="train")
    cli.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    cli.add_argument(
        "--masks",
        action="store_true",
        help="also write truth_masks/<study>/<series>.npz of sagittal series: 1 body, 2 disc, 3 sac, 4 sacrum",
    )
    cli.add_argument(
        "--wild",
        type=float,
        default=0.3,
        help="share of series, 0 to 1, whose contrast is randomised far beyond the realistic (default 0.3)",
    )
    cli.add_argument("--syntax", choices=SYNTAXES, default="rle", help="transfer syntax (default rle)")
    return cli


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    cli = parser()
    options = cli.parse_args(arguments)
    if options.studies < 1 or options.workers < 1 or options.seed < 0 or not 0 <= options.wild <= 1:
        cli.error("--studies and --workers must be at least 1, --seed at least 0, --wild in 0..1")
    end_in_order()
    try:
        chosen = pitfalls.parse(options.pitfalls)
        make_folder(options.out)

        from lumbar_phantom.cohort import make_cohort, summary  # numba and scipy: seconds

        done = make_cohort(
            options.out,
            options.studies,
            options.seed,
            pitfalls=chosen,
            split=options.split,
            workers=options.workers,
            masks=options.masks,
            randomised_share=options.wild,
            syntax=options.syntax,
        )
    except (LumbarError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        again = "run the same command again, which makes the same studies from the first on"
        print(f"error: {reason_of(error)}: {options.out} has no tables yet; {again}", file=sys.stderr)
        return 1
    print(summary(done))
    return 0


if __name__ == "__main__":
    sys.exit(main())
