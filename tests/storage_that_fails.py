"""A storage for tests: local files behind pyarrow's interface, which fails or waits where a test wants it to."""

import threading
from collections.abc import Callable
from typing import Any

from pyarrow import fs

from genrec.training.checkpoint_store import CheckpointStore

LOCAL = fs.LocalFileSystem()


class FailingFiles(fs.FileSystemHandler):
    """Local files; `call` raises `error` for paths that hold `path`, as long as `fails` is set.

    With `gate`, writing waits until it is set. What was opened for writing is in `opened_for_writing`.
    """

    def __init__(
        self,
        call: str | None = None,
        *,
        path: str = "",
        error: Exception | None = None,
        gate: threading.Event | None = None,
    ) -> None:
        self.call = call
        self.part = path
        self.error = error or OSError("no route to host")
        self.gate = gate
        self.fails = True
        self.opened_for_writing: list[str] = []

    def store(self, root: str) -> CheckpointStore:
        """A store on these files."""
        return CheckpointStore(root, filesystem=fs.PyFileSystem(self))

    def _do(self, call: str, path: str, work: Callable[[], Any]) -> Any:
        if self.fails and call == self.call and self.part in path:
            raise self.error
        return work()

    def get_type_name(self) -> str:
        return "failing"

    def normalize_path(self, path: str) -> str:
        return LOCAL.normalize_path(path)

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        return LOCAL.get_file_info(paths)

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        return self._do("get_file_info_selector", selector.base_dir, lambda: LOCAL.get_file_info(selector))

    def create_dir(self, path: str, recursive: bool) -> None:
        LOCAL.create_dir(path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        self._do("delete_dir", path, lambda: LOCAL.delete_dir(path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        LOCAL.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError

    def delete_file(self, path: str) -> None:
        self._do("delete_file", path, lambda: LOCAL.delete_file(path))

    def move(self, src: str, dest: str) -> None:
        raise NotImplementedError("object stores have no rename")

    def copy_file(self, src: str, dest: str) -> None:
        raise NotImplementedError

    def open_input_stream(self, path: str) -> Any:
        return self._do("open_input_stream", path, lambda: LOCAL.open_input_stream(path))

    def open_input_file(self, path: str) -> Any:
        return self._do("open_input_file", path, lambda: LOCAL.open_input_file(path))

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        self.opened_for_writing.append(path)
        if self.gate is not None and not self.gate.wait(60):
            raise TimeoutError("the test never opened the gate")
        return self._do("open_output_stream", path, lambda: LOCAL.open_output_stream(path, metadata=metadata))

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        raise NotImplementedError
