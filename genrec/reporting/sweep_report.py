"""The page of a sweep: one self-contained HTML file in its folder."""

from pathlib import Path

from genrec.errors import RunError
from genrec.reporting import sweep_sections as sections
from genrec.reporting.page import render_page
from genrec.reporting.sweep_charts import power_law, sweep_charts
from genrec.reporting.sweep_record import SweepRecord, read_record
from genrec.run_dir import write_atomically

REPORT_FILE = "report.html"


def write_sweep_report(folder: Path, path: Path | None = None) -> Path:
    """Writes the page, into the sweep's folder unless `path` names another file, and returns where it is.

    Raises DataError when the folder holds no sweep, RunError when the page cannot be written.
    """
    record = read_record(folder)
    path = path or folder / REPORT_FILE
    try:
        write_atomically(path, sweep_page(record))
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror}); make room, or mend its permissions.") from error
    return path


def sweep_page(record: SweepRecord) -> str:
    """The page of a sweep's record, finished or not."""
    values = record.values
    charts, losers = sweep_charts(record), sections.losers(record)
    retrained, takeovers = sections.retrained(record), sections.takeovers(record)
    present = {
        "retrained": ("With fresh seeds", bool(retrained)),
        "leaderboard": ("Leaderboard", bool(record.ranked)),
        "charts": ("Charts", bool(charts)),
        "takeovers": ("Hand-offs", bool(takeovers)),
        "others": ("Trials without a value", bool(losers)),
    }
    spec = values["spec"]
    return render_page(
        "sweep.html",
        name=values["name"],
        lead=f"{spec['searcher']['name']} search, scheduler {spec['scheduler']['name']}, seed {values['seed']}",
        finished=values["state"] == "finished",
        state=values["reason"] or values["state"],
        figures=sections.figures(record),
        sections=[(name, title) for name, (title, shown) in present.items() if shown],
        head=sections.leaderboard_head(record),
        leaderboard=sections.leaderboard(record),
        num_ranked=len(record.ranked),
        charts=charts,
        losers=losers,
        takeovers=takeovers,
        retrained=retrained,
        verdict=sections.verdict(record),
        has_law=power_law(record) is not None,
    )
