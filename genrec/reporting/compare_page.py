"""`genrec compare RUN RUN --html FILE`: a comparison of runs on one HTML page that needs no other file."""

from pathlib import Path

from genrec.errors import RunError
from genrec.reporting import comparison_tables, formats, tables
from genrec.reporting.comparison import Comparison
from genrec.reporting.page import render_page
from genrec.run_dir import write_atomically


def write_comparison_page(comparison: Comparison, path: Path) -> None:
    """Replaces the file by the page; raises RunError when it cannot be written."""
    page = render_page(
        "compare.html",
        role=comparison.role,
        metric=formats.metric_name(comparison.decisive),
        names=[run.name for run in comparison.runs],
        verdicts=comparison_tables.verdicts(comparison),
        metrics=comparison_tables.metric_rows(comparison, with_intervals=True),
        others=comparison_tables.other_rows(comparison),
        seed_names=comparison_tables.seed_names(comparison),
        seeds=comparison_tables.seed_rows(comparison),
        spread=comparison_tables.SPREAD,
        slices=comparison_tables.slice_tables(comparison),
        sliced=comparison_tables.SLICED,
        marks=comparison_tables.MEANINGS,
        note=comparison_tables.note(comparison),
        protocol=tables.protocol_rows(comparison.protocol),
    )
    try:
        write_atomically(path, page)
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror}); choose another file with --html.") from error
