"""What the page of a run says of the map of codes that its model writes: what it is, and its health."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from genrec.config import ExperimentConfig
from genrec.errors import DataError
from genrec.reporting import formats
from genrec.reporting.runs_read import read_object
from genrec.reporting.tables import Row
from genrec.run_dir import RunDir
from genrec.semantic.ids import MAP_FILE

if TYPE_CHECKING:
    from genrec.semantic.health import Health

HEALTH_FILE = "health.json"


def codes_section(run: RunDir, config: ExperimentConfig) -> dict[str, Any] | None:
    """Rows, text and tables about the run's map; None for a model that writes no codes, or where no map is at hand.

    The map is that of the export, before there is one that of `semantic_ids.path`. Its health is in the latter folder,
    and is shown where that still holds the same map, or one that has grown out of it. Raises DataError when a file is
    damaged.
    """
    if not config.writes_codes or config.semantic_ids is None:
        return None
    folder = Path(config.semantic_ids.path)
    stored = read_object(folder / MAP_FILE)
    told = read_object(run.export_path / MAP_FILE) or stored
    if not told:
        return None
    health = _health(folder, stored, str(told.get("digest")))
    rows, added = _rows(told)
    if health is None:
        text = f"The health of this map is not at hand: {folder} does not hold it, or holds another one by now."
        return {"text": text, "rows": rows, "tables": ()}
    # torch comes with the health, which few reports need
    from genrec.reporting.semantic_report import health_tables, key_figures, more_figures

    text = f"Health of the codes, from {folder / HEALTH_FILE}, before collisions were resolved"
    text += f" and before {formats.count(added)} items joined." if added else "."
    return {
        "text": text,
        "rows": rows + list(key_figures(health)[1:] + more_figures(health)[:-1]),
        "tables": health_tables(health),
    }


def _health(folder: Path, stored: dict[str, Any], digest: str) -> "Health | None":
    """The health in a map's folder, where that map is the one with the digest or an extension of it."""
    earlier = [one.get("from_digest") for one in (stored.get("origin") or {}).get("extensions", [])]
    values = read_object(folder / HEALTH_FILE).get("health")
    if values is None or digest not in (stored.get("digest"), *earlier):
        return None
    from genrec.semantic.health import health_from_json

    try:
        return health_from_json(values)
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder / HEALTH_FILE} is damaged ({error!r}); remove the file.") from error


def _rows(told: dict[str, Any]) -> tuple[list[Row], int]:
    """The lines about the map itself, and how many items have joined since it was made."""
    origin = told.get("origin") or {}
    names = {name: (origin.get(name) or {}).get("name", formats.MISSING) for name in ("tokenizer", "vectors")}
    added = sum(int(one.get("num_new", 0)) for one in origin.get("extensions", []))
    sizes = [int(size) for size in told.get("sizes", [])]
    rows = [
        Row(
            "Levels", " x ".join(map(str, sizes)), f"{formats.count(sum(sizes))} codes in all, as the model writes them"
        ),
        Row("Tokenizer", str(names["tokenizer"]), "semantic_ids.tokenizer"),
        Row("Item vectors", str(names["vectors"]), "semantic_ids.vectors"),
        Row("Collisions", str(origin.get("collisions", formats.MISSING)), "semantic_ids.collisions"),
        Row("Map", str(told.get("digest"))[:12], "start of its digest; a run goes on with the same map only"),
    ]
    if added:
        rows.append(Row("Items that joined", formats.count(added), "got their codes by --extend"))
    accepted = origin.get("accepted") or []
    if accepted:
        rows.append(Row("Accepted", "; ".join(map(str, accepted)), "although it is beyond a threshold"))
    return rows, added
