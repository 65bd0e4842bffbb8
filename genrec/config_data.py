"""The `data.` settings: where events come from and how they become sequences. `genrec.config` has all the others.

They alone decide what is in a prepared data set.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from genrec.config_secrets import check_no_secrets


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values are frozen, types are not guessed across kinds."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, values: Any) -> Any:
        # Python counts true as 1; whoever writes `patience: true` means something else.
        for key, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, bool) and key in cls.model_fields and cls.model_fields[key].annotation is not bool:
                raise ValueError(f"{key} must not be {str(value).lower()}; give a number, a text or null")
        return values


def kind_by_default(name: str) -> BeforeValidator:
    """Lets a section leave out `name` when one kind is the usual one."""
    return BeforeValidator(lambda value: {"name": name, **value} if isinstance(value, dict) else value)


class ColumnsConfig(Section):
    """Names of the log's columns."""

    user: str = Field("user", description="column with the user id (integers or strings)")
    item: str = Field("item", description="column with the item id (integers or strings)")
    time: str = Field("time", description="column with the event time (integer or timestamp)")
    action: str | None = Field(None, description="column with the action (stream, skip, save, ...)")
    value: str | None = Field(None, description="column with a number (seconds played, rating)")
    time_unit: Literal["s", "ms", "us"] = Field("s", description="what an integer time counts: s, ms or us since 1970")


class ParquetSource(Section):
    """A Parquet log: one file or a folder of shards, on any file system that pyarrow reads."""

    name: Literal["parquet"]
    path: str = Field(description="file or folder; $VARIABLES are expanded")
    columns: ColumnsConfig = Field(ColumnsConfig(), description="names of the log's columns")
    items_path: str | None = Field(None, description="item table (Parquet): item, and any of type, title")


class CsvSource(Section):
    """A CSV log: one file or a folder of shards, with a header line; `.gz` is read as it is."""

    name: Literal["csv"]
    path: str = Field(description="file or folder; $VARIABLES are expanded")
    columns: ColumnsConfig = Field(ColumnsConfig(), description="names of the log's columns")
    delimiter: str = Field(",", min_length=1, max_length=1, description="the character between two fields")
    items_path: str | None = Field(None, description="item table (Parquet): item, and any of type, title")


class RecBoleSource(Section):
    """RecBole atomic files: a tab-separated `.inter` file with a typed header (`user_id:token`, ...)."""

    name: Literal["recbole"]
    path: str = Field(description="the .inter file, or the folder that holds one; `.gz` is read as it is")


class SequenceTextSource(Section):
    """Text whose order is the time order and is kept: `user item` a line, or `user item item ...` a line."""

    name: Literal["sequence-text"]
    path: str = Field(description="the text file; `.gz` is read as it is")
    layout: Literal["pairs", "lists"] = Field(description="pairs: `user item` a line; lists: `user item item ...`")


class MovieLensSource(Section):
    """MovieLens in its original release format: a folder, a zip file, or a download checked against its checksum."""

    name: Literal["ml-100k", "ml-1m", "ml-20m"]
    path: str | None = Field(None, description="release folder or zip file; null downloads it")
    url: str | None = Field(None, description="where to download the zip from; null is GroupLens")
    checksum: str | None = Field(None, description="`md5:...` or `sha256:...` of the zip; null is the published one")
    download_dir: str = Field("prepared/downloads", description="where a download is kept")


class SyntheticSource(Section):
    """A seeded listening log whose best reachable hit rate is known (docs/synthetic.md)."""

    name: Literal["synthetic"]
    num_events: int = Field(200_000, ge=10_000, le=2_000_000_000, description="events in the log, about")
    num_users: int | None = Field(None, ge=10, description="users; null is one for every 50 events")
    num_items: int = Field(2_000, ge=100, description="items: tracks, episodes, audiobooks and videos")
    seed: int = Field(1, ge=0, description="seed of the log; the training seed does not touch it")

    @model_validator(mode="after")
    def _history_length(self) -> "SyntheticSource":
        events_per_user = self.num_events / self.users
        if not 5 <= events_per_user <= 4_000:
            raise ValueError(
                f"num_events ({self.num_events}) / num_users ({self.users}) must be 5 to 4000 events a user, not "
                f"{events_per_user:.1f}; use {max(10, self.num_events // 50)} users, or leave num_users out"
            )
        return self

    @property
    def users(self) -> int:
        """Users in the log: `num_users`, or one for every 50 events."""
        return self.num_users if self.num_users is not None else self.num_events // 50


class MixtureSource(Section):
    """Several prepared sets as one; `sequence.mix` gives each its share of the training."""

    name: Literal["mixture"]
    sets: dict[str, str] = Field(min_length=2, description="name of a part -> folder of its prepared set")


Source = Annotated[
    ParquetSource | CsvSource | RecBoleSource | SequenceTextSource | MovieLensSource | SyntheticSource | MixtureSource,
    Field(discriminator="name"),
]


class LeaveOneOutSplit(Section):
    """Each user's last event is test, the one before it is validation, the rest is training."""

    name: Literal["leave-one-out"] = "leave-one-out"


class GlobalTimeSplit(Section):
    """Wall time cuts the log: training before `validation_from`, validation up to `test_from`, test after it."""

    name: Literal["global-time"]
    validation_from: int = Field(description="first second (unix time of the log) of the validation period")
    test_from: int = Field(description="first second (unix time of the log) of the test period")

    @model_validator(mode="after")
    def _ordered(self) -> "GlobalTimeSplit":
        if self.validation_from >= self.test_from:
            raise ValueError(
                f"validation_from ({self.validation_from}) must be before test_from ({self.test_from}); swap them"
            )
        return self


Split = Annotated[LeaveOneOutSplit | GlobalTimeSplit, Field(discriminator="name"), kind_by_default("leave-one-out")]


class ItemVectorsConfig(Section):
    """A frozen vector for each item, of its text or its sound; `inputs.item_vectors` makes a model read them."""

    path: str = Field(description="Parquet file or folder, a row an item; $VARIABLES are expanded")
    item: str = Field("item", description="column with the item id, as the log has it")
    vector: str = Field("vector", description="column with the vector: a list of numbers, as many in every row")
    normalize: bool = Field(True, description="divide each vector by its length")
    cold_items: bool = Field(
        False, description="items of the file without an event in the log join the catalogue, after the others"
    )


class DataConfig(Section):
    """From logs to a prepared data set."""

    source: Source = Field(description="where the events come from")
    prepared: str = Field(description="folder or URI of the prepared data set; made by `genrec prepare`")
    split: Split = Field(LeaveOneOutSplit(), description="what is held out")
    min_user_events: int = Field(1, ge=1, description="users with fewer events are dropped (k-core, iterated)")
    min_item_events: int = Field(1, ge=1, description="items with fewer events are dropped (k-core, iterated)")
    min_value: float | None = Field(None, description="events with a smaller value are dropped; null keeps all")
    keep_values: bool = Field(False, description="the events' values (seconds played) are stored, for heads.dwell")
    max_rejected_fraction: float = Field(0.01, ge=0, le=1, description="more bad rows than this fail the job")
    max_rejected_files: int = Field(0, ge=0, description="files of the log that may be bad and are put aside")
    max_time: int | None = Field(None, description="events after this second are rejected; null is the year 9999")
    num_shards: int | None = Field(None, ge=1, le=65_536, description="sequence files; null picks by the log's size")
    item_vectors: ItemVectorsConfig | None = Field(None, description="vectors of the items' content; null is none")

    @model_validator(mode="after")
    def _no_secrets(self) -> "DataConfig":
        check_no_secrets("prepared", self.prepared)
        for name in ("path", "items_path", "url"):
            check_no_secrets(f"source.{name}", getattr(self.source, name, None))
        check_no_secrets("item_vectors.path", None if self.item_vectors is None else self.item_vectors.path)
        return self

    @model_validator(mode="after")
    def _vectors_of_one_log(self) -> "DataConfig":
        if self.item_vectors is not None and self.source.name == "mixture":
            raise ValueError("item_vectors are read beside a log, and a mixture has none; leave them out of mixtures")
        return self
