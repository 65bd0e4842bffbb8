"""`genrec report RUN`: everything a run has recorded, on one HTML page that needs no other file."""

from pathlib import Path

import numpy as np

from genrec.config import ExperimentConfig
from genrec.data.manifest import Manifest, load_manifest
from genrec.errors import DataError, RunError
from genrec.reporting import formats, run_sections, tables
from genrec.reporting.document_page import write_file
from genrec.reporting.history import read_history
from genrec.reporting.page import render_page
from genrec.reporting.profiles import profile_section, read_profile
from genrec.reporting.run_charts import lines_per_point, run_charts
from genrec.reporting.run_codes import codes_section
from genrec.reporting.runs_read import read_evaluation, read_object
from genrec.run_dir import RunDir, open_run, write_atomically

SECTIONS = (
    ("result", "Result"),
    ("slices", "Slices"),
    ("protocol", "Protocol"),
    ("served", "Served otherwise"),
    ("curves", "Curves"),
    ("profile", "Profile"),
    ("starts", "Starts"),
    ("codes", "Semantic ids"),
    ("data", "Data"),
    ("config", "Config"),
    ("environment", "Environment"),
)


def write_report(run: RunDir, path: Path | None = None) -> Path:
    """The path of the page, written atomically: `path`, or `report.html` in the run directory.

    A run in progress gets a page too. Raises DataError when the folder is no run, has recorded nothing yet, or holds a
    damaged file, and RunError when the page cannot be written.
    """
    page = _page(run)
    if path is not None:
        write_file(path, page, "--html")
        return path
    try:
        write_atomically(run.report_path, page)
    except OSError as error:
        raise RunError(
            f"{run.report_path} cannot be written ({error.strerror}); make room, or make the folder writable."
        ) from error
    return run.report_path


def _page(run: RunDir) -> str:
    _, config = open_run(run.root)
    metric = config.evaluation.metric
    history = read_history(run.metrics_path)
    evaluation = read_evaluation(run.evaluation_path)
    if history.is_empty and not evaluation:
        raise DataError(f"{run.root} has recorded nothing yet; start it with `genrec train CONFIG`, then report on it.")
    manifest, note = _manifest(config)
    result = run_sections.result(evaluation, metric, manifest.best_known if manifest else {})
    served = run_sections.served(evaluation, read_evaluation(run.served_evaluation_path), metric)
    settings = tables.config_groups(config)
    profile = profile_section(read_profile(run))
    codes = codes_section(run, config)
    bad_steps = history.train["step"][~np.isfinite(history.train["loss"])].astype(int).tolist()
    present = {
        "result": result is not None,
        "slices": result is not None and bool(result["slices"]),
        "protocol": result is not None and bool(result["protocol"]),
        "served": served is not None,
        "profile": profile is not None,
        "starts": bool(history.starts),
        "codes": codes is not None,
        "data": manifest is not None,
    }
    return render_page(
        "run.html",
        name=config.name,
        summary=run_sections.summary(config, history),
        finished="test" in evaluation,
        state=run_sections.state(history, finished="test" in evaluation),
        alerts=[*run_sections.loss_alerts(bad_steps), *run_sections.cautions(history)],
        note=note,
        figures=run_sections.key_figures(history, evaluation, metric),
        sections=[(name, title) for name, title in SECTIONS if present.get(name, True)],
        result=result,
        served=served,
        metric=formats.metric_name(metric),
        charts=run_charts(history, metric),
        profile=profile,
        num_restarts=len(history.restart_steps),
        num_bad=len(bad_steps),
        lines_per_point=lines_per_point(history),
        validations=run_sections.validations(history, metric),
        starts=run_sections.starts(history),
        codes=codes,
        data=tables.data_rows(manifest) if manifest else [],
        config=settings,
        changed=tables.changed_rows(settings),
        environment=tables.environment_groups(read_object(run.environment_path)),
    )


def _manifest(config: ExperimentConfig) -> tuple[Manifest | None, str]:
    """The prepared set's manifest, or why the page goes without: a report is often made where the data is not."""
    try:
        return load_manifest(config.data.prepared), ""
    except DataError as error:
        missing = "The data section is" if config.data.source.name != "synthetic" else "Data and best known result are"
        return None, f"{missing} left out: {error}"
