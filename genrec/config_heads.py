"""The `heads.` settings: what is predicted of the next event besides its item. `genrec.config` has all the others."""

from pydantic import Field

from genrec.config_data import Section


class ActionHeadConfig(Section):
    """The action of the next event (stream, skip, save, ...), given its item."""

    weight: float = Field(0.2, gt=0, le=1_000, description="factor of its loss, beside 1 for the next item's")


class DwellHeadConfig(Section):
    """How long the next event lasts (seconds played), given its item."""

    weight: float = Field(0.1, gt=0, le=1_000, description="factor of its loss, beside 1 for the next item's")


class HeadsConfig(Section):
    """Tasks besides the next item; each has a loss of its own."""

    action: ActionHeadConfig | None = Field(None, description="the action of the next event; null is off")

    dwell: DwellHeadConfig | None = Field(None, description="the seconds played of the next event; null is off")

    @property
    def weights(self) -> dict[str, float]:
        """Factor of each loss, by the name of its task; empty without heads."""
        tasks = {"action": self.action, "dwell": self.dwell}
        return {name: task.weight for name, task in tasks.items() if task is not None}
