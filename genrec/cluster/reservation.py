"""Which placement group a run's workers are in, written down for whoever must free it.

Ray frees the group when the controller of the workers ends by itself, and when the job ends. For a controller that is
killed, as when Tune stops a trial, Ray Train has an actor that asks the dashboard whether the controller is alive. It
does not where there is no dashboard, where the dashboard answers too late (Ray 2.60: an error ends its thread), and
where it died with the controller. Then the group stays reserved for as long as the job lives, and the next trial of a
sweep would wait for these CPUs without end.
"""

import logging

from genrec.run_dir import RunDir, write_atomically

logger = logging.getLogger(__name__)

RESERVATION_FILE = "placement_group"


def note_reservation(run: RunDir) -> None:
    """Writes down this worker's placement group."""
    from ray.util.placement_group import get_current_placement_group

    group = get_current_placement_group()
    if group is not None:
        write_atomically(run.root / RESERVATION_FILE, group.id.hex())


def free_reservation(run: RunDir) -> None:
    """Frees what workers of this run still hold. Whoever calls it has the run to itself, so they are gone."""
    from ray import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    path = run.root / RESERVATION_FILE
    if not path.is_file():
        return
    name = path.read_text(encoding="utf-8").strip()
    known = placement_group_table().get(name)
    if known is not None and known["state"] != "REMOVED":
        logger.info("%s: its last workers are gone, and what they had reserved is freed.", run.root)
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(name))))
    path.unlink(missing_ok=True)  # the command and the trial's next process may both be here
