"""`genrec inspect DATA`: what is in a prepared data set and what training on it would be, counted once and shown as
tables, as JSON, or as one HTML page that needs no other file."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from genrec.config import ExperimentConfig, config_from_dict, load_config
from genrec.data.manifest import Manifest, load_manifest
from genrec.data.stored_set import at_hand
from genrec.errors import ConfigError, DataError
from genrec.overrides import apply_overrides
from genrec.reporting import data_sections, tables
from genrec.reporting.data_charts import data_charts
from genrec.reporting.data_examples import ExampleUser, example_users
from genrec.reporting.data_facts import (
    Action,
    ItemType,
    Lengths,
    Periods,
    Popularity,
    Sample,
    count_events,
    count_items,
    count_lengths,
    sample_row_groups,
)
from genrec.reporting.data_plan import PlanFacts, plan_facts
from genrec.reporting.page import render_page
from genrec.run_dir import write_atomically

SECTIONS = (
    ("contents", "Contents"),
    ("shape", "Shape"),
    ("training", "Training"),
    ("examples", "Examples"),
    ("put-aside", "Files put aside"),
    ("settings", "Settings"),
)


@dataclass(frozen=True, slots=True)
class DataFacts:
    """Everything that `genrec inspect` shows; without a plan, `plan_problem` says why."""

    folder: str
    manifest: Manifest
    lengths: Lengths
    popularity: Popularity
    item_types: tuple[ItemType, ...]
    sample: Sample
    actions: tuple[Action, ...]
    periods: Periods | None
    examples: tuple[ExampleUser, ...]
    plan: PlanFacts | None
    plan_problem: str


def config_of(data: Path, overrides: list[str] | None = None) -> ExperimentConfig:
    """The config to plan with: that of a YAML file, or for a prepared folder the defaults; overrides on top.

    Raises ConfigError when `data` is neither, or something in it is wrong.
    """
    if not data.is_dir():
        if not data.exists():
            raise ConfigError(f"{data} is neither a prepared folder nor a config file; give one of the two.")
        return load_config(data, overrides)
    # A plan asks for sequence, batch and seed only; the other sections are there because a config must have them.
    values = {
        "name": "inspect",
        "data": {"source": {"name": "parquet", "path": str(data)}, "prepared": str(data)},
        "model": {"name": "sasrec"},
        "loss": {"name": "full-softmax"},
        "train": {"max_epochs": 1},
    }
    return config_from_dict(apply_overrides(values, overrides or []), str(data))


def inspect_data(config: ExperimentConfig) -> DataFacts:
    """The facts of the config's prepared data set and of a plan on it.

    Raises DataError when the set is not there or is damaged. A plan that cannot be made is a sentence in the facts: the
    set may be just what is looked for.
    """
    folder = at_hand(config.data.prepared)
    manifest = load_manifest(folder)
    lengths = count_lengths(folder, manifest)
    popularity, item_types = count_items(folder)
    sample, actions, periods = count_events(folder, manifest)
    examples = example_users(folder, manifest, sample_row_groups(manifest)[0])
    plan, problem = None, ""
    try:
        plan = plan_facts(config)
    except (ConfigError, DataError) as error:
        problem = str(error)
    return DataFacts(
        folder=str(folder),
        manifest=manifest,
        lengths=lengths,
        popularity=popularity,
        item_types=item_types,
        sample=sample,
        actions=actions,
        periods=periods,
        examples=examples,
        plan=plan,
        plan_problem=problem,
    )


def facts_json(facts: DataFacts) -> dict[str, Any]:
    """The facts as JSON values; of the manifest all but the list of files, whose sums stand beside it."""
    values = {name: _plain(getattr(facts, name)) for name in DataFacts.__slots__ if name != "manifest"}
    manifest = facts.manifest
    return {
        "folder": values.pop("folder"),
        "manifest": manifest.model_dump(mode="json", exclude={"files", "source_files"}),
        "num_files": len(manifest.files),
        "num_row_groups": manifest.num_row_groups,
        "num_bytes": data_sections.num_bytes(manifest),
        **values,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [asdict(part) for part in value]
    return value if value is None or isinstance(value, str) else asdict(value)


def write_data_page(facts: DataFacts, path: Path) -> Path:
    """The path of the page, written atomically; raises DataError when it cannot be written."""
    try:
        write_atomically(path, data_page(facts))
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}); give --html a file in a folder.") from error
    return path


def data_page(facts: DataFacts) -> str:
    """The HTML page."""
    manifest = facts.manifest
    present = {"put-aside": bool(manifest.rejected_files), "settings": bool(manifest.config)}
    return render_page(
        "data.html",
        name=Path(facts.folder).name,
        summary=data_sections.summary(manifest),
        note=data_sections.sample_note(facts.sample),
        figures=data_sections.key_figures(manifest, facts.lengths, facts.plan),
        sections=[(name, title) for name, title in SECTIONS if present.get(name, True)],
        contents=data_sections.contents(manifest),
        charts=data_charts(facts.lengths, facts.popularity, facts.periods),
        spread=data_sections.spread(facts.lengths, facts.popularity),
        item_types=data_sections.item_type_rows(facts.item_types),
        actions=data_sections.action_rows(facts.actions),
        plan=data_sections.plan_rows(facts.plan) if facts.plan else [],
        plan_text=data_sections.plan_text(facts.plan) if facts.plan else facts.plan_problem,
        layouts=data_sections.layout_rows(facts.plan) if facts.plan else [],
        layout_text=data_sections.layout_text(facts.plan) if facts.plan else "",
        examples=data_sections.example_tables(facts.examples),
        example_text=data_sections.EXAMPLE_TEXT,
        put_aside=data_sections.put_aside(manifest),
        settings=tables.environment_groups(manifest.config),
    )
