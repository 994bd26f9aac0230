"""Command line: ``python -m lumbar_publish dry-run``, what ``make dry-run`` runs."""

from __future__ import annotations

import sys

from lumbar.io.arguments import Parser
from lumbar_publish.rehearsal import dry_run


def main(argv: list[str] | None = None) -> int:
    """Run a command; its own arguments follow its name."""
    words = sys.argv[1:] if argv is None else argv
    parser = Parser(
        prog="python -m lumbar_publish",
        description="Rehearse a submission at home. To seal and publish: python build_dataset.py --help",
        epilog="python -m lumbar_publish dry-run --help lists the options of a command",
    )
    parser.add_argument("command", choices=("dry-run",), help="run the sealed notebook offline, as Kaggle would")
    parser.parse_args(words[:1])
    return dry_run.main(words[1:])


if __name__ == "__main__":
    sys.exit(main())
