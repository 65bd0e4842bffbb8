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
    from ray.util.placement_group import placement_group_table

    path = run.root / RESERVATION_FILE
    if not path.is_file():
        return
    name = path.read_text(encoding="utf-8").strip()
    known = placement_group_table().get(name)
    if known is not None and known["state"] != "REMOVED":
        logger.info("%s: its last workers are gone, and what they had reserved is freed.", run.root)
        _remove(bytes.fromhex(name))
    path.unlink(missing_ok=True)  # the command and the trial's next process may both be here


def free_orphans() -> None:
    """Frees what controllers of this job that are dead still hold.

    One that dies before its worker 0 runs has left no note, and Ray's own helper has not heard of its group yet. What
    the driver or a task reserves has no actor as its maker, which Ray calls dead too; it is left alone.
    """
    import ray
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    own_job = ray.get_runtime_context().get_job_id()
    for text in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(text)
        by_actor = group.creator_actor_id not in (b"", ray.ActorID.nil().binary())
        if (
            by_actor
            and group.creator_actor_dead
            and group.creator_job_id.hex() == own_job
            and not group.is_detached
            and group.state != PlacementGroupTableData.REMOVED
        ):
            logger.info("The controller of placement group %s is dead; it is freed.", group.placement_group_id.hex())
            _remove(group.placement_group_id)


def _remove(group: bytes) -> None:
    from ray import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    remove_placement_group(PlacementGroup(PlacementGroupID(group)))
