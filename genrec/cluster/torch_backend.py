"""Ray Train's torch backend, with SIGTERM as a notice to leave: only an actor's main thread may set signal handlers.

The train function runs in another thread. What a backend executes when a worker group starts runs in the main one.
"""

import signal
import threading
from types import FrameType
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


class NoticingTorchConfig(TorchConfig):  # type: ignore[misc]  # Ray has no types
    """`TorchConfig` whose workers take SIGTERM as a notice (training/preemption.py)."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """See `BackendConfig`."""
        return _NoticingBackend


class _NoticingBackend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """See `Backend`."""
        super().on_start(worker_group, backend_config)
        worker_group.execute(take_sigterm_as_notice)


def take_sigterm_as_notice() -> None:
    """SIGTERM is a notice first; outside training, or when it comes again, what was set before decides."""
    from genrec.training.preemption import notice_of_process

    if threading.current_thread() is not threading.main_thread():
        return
    before = signal.getsignal(signal.SIGTERM)

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        if not notice_of_process().take(number) and callable(before):
            before(number, frame)

    signal.signal(signal.SIGTERM, on_sigterm)
