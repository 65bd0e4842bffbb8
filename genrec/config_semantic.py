"""The `semantic_ids.` settings: which tuple of codes stands for each item. `genrec.config` has all the others."""

from pydantic import Field

from genrec.config_data import Section


class SemanticIdsConfig(Section):
    """Where the map from items to codes is."""

    path: str = Field(description="folder of the map: codes.npy and map.json")
