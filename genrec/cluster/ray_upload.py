"""How a worker's part of a checkpoint is published under Ray Train: in the background, through `ray.train.report`."""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path


def publish(
    record_mistake: Callable[[Exception], None], folder: Path, name: str, upload: Callable[[], None], validate: bool
) -> "Future[None]":
    """Starts the upload of a checkpoint; all workers call it together, and none waits for another's upload.

    Ray runs `upload` in its one thread for it, tries it again after errors of S3 that pass, and deletes the folder
    after it. When it fails for good, Ray ends all workers at once and starts them again from the last checkpoint that
    counts, as often as `cluster.max_failures` allows: the answer then stays open, since Ray does not say here that it
    has given up trying.
    """
    import ray.train
    from ray.train import Checkpoint, CheckpointUploadMode

    done: Future[None] = Future()
    storage = ray.train.get_context().get_storage()

    def upload_to_store(_: Checkpoint, __: str) -> Checkpoint:
        try:
            upload()
        except Exception as error:
            record_mistake(error)
            raise
        done.set_result(None)
        return Checkpoint(storage.build_checkpoint_path_from_name(name), storage.storage_filesystem)

    ray.train.report(
        {"checkpoint": name},
        checkpoint=Checkpoint.from_directory(folder),
        checkpoint_dir_name=name,
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        checkpoint_upload_fn=upload_to_store,
        delete_local_checkpoint_after_upload=True,
        validation=validate,
    )
    return done
