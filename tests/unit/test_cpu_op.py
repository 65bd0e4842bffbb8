"""DeepSpeed's CPU op: found where torch puts it, built under a time limit, and no waiting for a lock that nobody holds.

The build itself is replaced by small Python programs, but for the tests that ask for the fixture `cpu_op`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from genrec import cpu_op as module
from genrec.cpu_op import OP_NAME, build_folder, compile_cpu_op, find_tool, is_compiled, op_folder_locked, stale_lock
from genrec.errors import RunError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty build folder."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    folder = tmp_path / OP_NAME
    folder.mkdir()
    return folder


def build_with(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a program in the place of the build; `folder` is the build folder there."""
    head = f"import os, pathlib; folder = pathlib.Path(os.environ['TORCH_EXTENSIONS_DIR']) / '{OP_NAME}'\n"
    monkeypatch.setattr(module, "_COMPILE", head + program)


def write_build(folder: Path) -> Path:
    """What a finished build leaves; returns the library."""
    sources = module._package_folder("deepspeed") / "ops" / "csrc" / "cpu" / "comm"
    (folder / "build.ninja").write_text(f"build shm.o: compile {sources}/shm.cpp\n")
    library = folder / f"{OP_NAME}.so"
    library.write_bytes(b"")
    return library


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "TORCH_EXTENSIONS_DIR"])
def test_build_folder_is_the_one_that_torch_uses(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.utils.cpp_extension import _get_build_directory

    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    assert build_folder() == Path(_get_build_directory(OP_NAME, verbose=False))
    assert build_folder().is_relative_to(tmp_path)


def test_nothing_is_compiled_in_an_empty_folder(folder: Path) -> None:
    assert not is_compiled()


def test_a_finished_build_counts(folder: Path) -> None:
    write_build(folder)
    assert is_compiled()


def test_a_build_that_is_older_than_the_packages_does_not_count(folder: Path) -> None:
    os.utime(write_build(folder), (1, 1))
    assert not is_compiled()


def test_a_build_of_another_environment_does_not_count(folder: Path) -> None:
    write_build(folder)
    (folder / "build.ninja").write_text("build shm.o: compile elsewhere/shm.cpp\n")
    assert not is_compiled()


def test_a_lock_that_nobody_holds_is_removed_with_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Even when the op is compiled: every worker takes the lock before it loads it, and would wait for ever.
    write_build(folder)
    lock = folder / "lock"
    lock.touch()
    assert stale_lock() == lock
    warnings: list[str] = []
    monkeypatch.setattr(module.logger, "warning", lambda text, *values: warnings.append(text % values))
    compile_cpu_op()
    assert not lock.exists()
    assert warnings == [f"{lock} was left by a process that was killed, and is removed."]


def test_other_ops_have_a_lock_of_their_own(folder: Path) -> None:
    other = folder.parent / "cpu_adam"
    other.mkdir()
    for place in (folder, other):
        (place / "lock").touch()
    with op_folder_locked("cpu_adam"):
        assert not (other / "lock").exists()
    assert (folder / "lock").exists()


def test_a_lock_that_is_held_is_left_alone(folder: Path) -> None:
    write_build(folder)
    with (folder / "lock").open("w"), op_folder_locked():
        assert (folder / "lock").exists()


def test_one_process_at_a_time_has_the_folder(folder: Path) -> None:
    code = "from genrec.cpu_op import op_folder_locked\nwith op_folder_locked(): print('in', flush=True)"
    with op_folder_locked():
        other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(3)
    assert other.communicate(timeout=120)[0] == "in\n"


def test_a_lock_that_a_process_holds_is_not_stale(folder: Path) -> None:
    with (folder / "lock").open("w"):
        assert stale_lock() is None


@pytest.mark.parametrize("tool", ["g++", "ninja"])
def test_a_missing_tool_is_named_with_the_mend(tool: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_tool", lambda name: None if name == tool else name)
    with pytest.raises(RunError, match=r"DeepSpeed needs .* not on PATH; install it .*engine\.name=torch\.") as caught:
        compile_cpu_op()
    assert f"needs {tool} " in str(caught.value)


def test_a_build_that_fails_says_the_compilers_first_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_with(
        "print('[1/2] g++'); print('shm.cpp:1:1: error: no such thing'); print('later'); raise SystemExit(1)",
        monkeypatch,
    )
    with pytest.raises(
        RunError, match=r"does not compile \(shm\.cpp:1:1: error: no such thing\); mend what `genrec doctor`"
    ):
        compile_cpu_op()


def test_a_build_that_leaves_no_library_has_failed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_with("pass", monkeypatch)
    with pytest.raises(RunError, match=r"does not compile \(no output\)"):
        compile_cpu_op()


def test_a_build_that_takes_too_long_is_ended_and_leaves_no_lock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_with("lock = open(folder / 'lock', 'w'); import threading; threading.Event().wait()", monkeypatch)
    with pytest.raises(RunError, match=r"did not compile within 3 s; .*engine\.name=torch"):
        compile_cpu_op(timeout_s=3)
    assert not (folder / "lock").exists()


def test_a_build_is_newer_than_the_packages_even_if_ninja_had_nothing_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(write_build(folder), (1, 1))
    build_with("pass", monkeypatch)
    compile_cpu_op()
    assert is_compiled()


def test_the_build_finds_the_tools_of_an_environment_that_is_not_activated(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    build_with(f"import shutil; assert shutil.which('ninja'); (folder / '{OP_NAME}.so').touch()", monkeypatch)
    compile_cpu_op()
    ninja = find_tool("ninja")
    assert ninja is not None and Path(ninja).is_file()


@pytest.mark.usefixtures("cpu_op")
def test_a_compiled_op_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert is_compiled()
    compile_cpu_op()
