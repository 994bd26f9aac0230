"""Whether a report is one page or an index with a page for each study, and where those pages lie."""

from __future__ import annotations

from pathlib import Path

MOST_ON_ONE_PAGE = 10  # studies that one page shows with pictures; a report of more studies gets an index
LAYOUTS = ("auto", "single", "pages")


def has_pages(layout: str, n_studies: int) -> bool:
    """Whether a report of so many studies is an index with a page for each, and not one page."""
    return layout == "pages" or (layout == "auto" and n_studies > MOST_ON_ONE_PAGE)


def pages_folder(report: str | Path) -> Path:
    """The folder of the studies' pages: ``report`` beside ``report.html``."""
    path = Path(report)
    return path.with_name(path.stem if path.suffix else f"{path.name}_pages")
