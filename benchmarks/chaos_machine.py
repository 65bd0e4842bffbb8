"""What `chaos.py` makes on this machine and takes away again: marked processes, network namespaces, a small volume.

Everything carries the process id of the harness that made it: processes in their environment, the rest in its name. So
whatever a killed harness has left is found and removed by the next one, and nothing that is not ours is ever touched.
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

MARK = "GENREC_CHAOS"
PREFIX = "genrec-chaos-"
COMMAND_TIMEOUT_S = 30
KILL_TIMEOUT_S = 30


class ChaosError(Exception):
    """The harness cannot go on; a sentence that says why."""


def marked_processes(owner: int | None = None, place: str | None = None) -> Iterator[tuple[int, psutil.Process]]:
    """(owner, process) of every process that a harness has started; of one `owner` and at one `place` when given."""
    for process in psutil.process_iter():
        try:
            mark = process.environ().get(MARK, "")
        except (psutil.Error, OSError):
            continue  # it has ended, or belongs to somebody else
        found_owner, _, found_place = mark.partition(":")
        if found_owner.isdigit() and owner in (None, int(found_owner)) and place in (None, found_place):
            yield int(found_owner), process


def kill_marked(owner: int, place: str | None = None) -> int:
    """Kills what `owner` has started (at one place, when given) and waits for its end; how many that were."""
    killed: set[int] = set()
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while processes := [process for _, process in marked_processes(owner, place)]:
        if time.monotonic() > deadline:
            raise ChaosError(f"{len(processes)} processes of the chaos harness {owner} do not end after SIGKILL.")
        for process in processes:
            killed.add(process.pid)
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue  # between two looks
        time.sleep(0.1)  # the pace of looking; those that ended on the way may have started others
    return len(killed)


def run_tool(*command: str) -> str:
    """What a tool of the system printed; raises ChaosError with its own words when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ChaosError(f"`{' '.join(command)}` did not run: {error}") from error
    if done.returncode:
        raise ChaosError(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def missing_for(tools: Sequence[str]) -> str | None:
    """What is missing to run `tools` as root, in words; None when nothing is."""
    absent = [tool for tool in tools if shutil.which(tool) is None]
    if os.geteuid() != 0:
        return "this user is not root"
    return f"there is no {' and no '.join(absent)} (iproute2 and util-linux have them)" if absent else None


class Network:
    """An address for each node: network namespaces on a bridge, or this machine's own address where they cannot be.

    `missing` says why there are none. Inside a namespace the only way out is the bridge, and it leads nowhere.
    """

    INTERFACE = "eth0"

    def __init__(self, owner: int, num_nodes: int, *, wanted: bool = True) -> None:
        self.owner = owner
        self.missing: str | None = None if wanted else "it was not asked for"
        if wanted:
            self.missing = missing_for(["ip", "nsenter"])
        if self.missing is None:
            try:
                self._make(num_nodes)
            except ChaosError as error:
                remove_networks(owner)
                self.missing = str(error)

    def address(self, node: int) -> str:
        """The address of a node."""
        return "127.0.0.1" if self.missing else f"{self._subnet}.{node + 1}"

    def inside(self, node: int) -> list[str]:
        """What to put before a command so that it runs with the node's address.

        `nsenter` changes the network alone; `ip netns exec` would hide mounts that are made later.
        """
        return [] if self.missing else ["nsenter", f"--net=/run/netns/{self._name(node)}", "--"]

    def remove(self) -> None:
        """Takes the namespaces and the bridge away."""
        if self.missing is None:
            remove_networks(self.owner)

    @property
    def _subnet(self) -> str:
        return f"10.201.{self.owner % 250}"

    def _name(self, node: int) -> str:
        return f"{PREFIX}{self.owner}-{node}"

    def _make(self, num_nodes: int) -> None:
        bridge = f"chb{self.owner}"
        run_tool("ip", "link", "add", bridge, "type", "bridge")
        run_tool("ip", "addr", "add", f"{self._subnet}.254/24", "dev", bridge)
        run_tool("ip", "link", "set", bridge, "up")
        for node in range(num_nodes):
            name, outer = self._name(node), f"ch{self.owner}v{node}"
            run_tool("ip", "netns", "add", name)
            run_tool("ip", "link", "add", outer, "type", "veth", "peer", "name", self.INTERFACE, "netns", name)
            run_tool("ip", "link", "set", outer, "master", bridge, "up")
            run_tool("ip", "-n", name, "addr", "add", f"{self.address(node)}/24", "dev", self.INTERFACE)
            run_tool("ip", "-n", name, "link", "set", self.INTERFACE, "up")
            run_tool("ip", "-n", name, "link", "set", "lo", "up")
            run_tool("ip", "-n", name, "route", "add", "default", "via", f"{self._subnet}.254")


def remove_networks(owner: int) -> None:
    """Removes the namespaces and the bridge of a harness, as far as they are there."""
    for name in re.findall(rf"^{PREFIX}{owner}-\d+", run_tool("ip", "netns", "list"), flags=re.MULTILINE):
        run_tool("ip", "netns", "del", name)  # its end of the cable goes with it, and so does the other end
    if re.search(rf"\bchb{owner}:", run_tool("ip", "-o", "link", "show", "type", "bridge")):
        run_tool("ip", "link", "del", f"chb{owner}")


class Volume:
    """A folder with a disk of its own, which can be filled, and parts of which can be made read-only.

    A tmpfs where this user may mount one, else a plain folder; `missing` then says why.
    """

    def __init__(self, owner: int, folder: Path, num_bytes: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.missing = missing_for(["mount", "umount"])
        if self.missing is None:
            try:
                run_tool("mount", "-t", "tmpfs", "-o", f"size={num_bytes}", f"{PREFIX}{owner}", str(folder))
            except ChaosError as error:
                self.missing = str(error)

    def fill(self) -> int:
        """Takes all the space that is left; how many bytes that were."""
        free = shutil.disk_usage(self.folder).free
        with self._balloon.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free)
        return free

    def empty(self) -> None:
        """Gives the space back."""
        self._balloon.unlink(missing_ok=True)

    @staticmethod
    def refuse_writes(folder: Path) -> None:
        """From now on what is opened below `folder` for writing, made or deleted there fails with EROFS.

        A read-only mount of the folder on itself: the volume itself cannot become read-only while a log is open on it.
        """
        run_tool("mount", "--bind", str(folder), str(folder))
        run_tool("mount", "-o", "remount,bind,ro", str(folder))

    @staticmethod
    def allow_writes(folder: Path) -> None:
        """Undoes `refuse_writes`."""
        run_tool("umount", "-l", str(folder))

    def remove(self) -> None:
        """Unmounts it; what is in it is gone, unless it was a plain folder."""
        if self.missing is None:
            unmount_below(self.folder)

    @property
    def _balloon(self) -> Path:
        return self.folder / "balloon"


def unmount_below(folder: Path) -> None:
    """Unmounts everything that is mounted at `folder` or below, innermost first."""
    points = [line.split()[1] for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    for point in reversed(points):
        if Path(point).is_relative_to(folder):
            run_tool("umount", "-l", point)


def scratch_folder(owner: int) -> Path:
    """A new folder for Ray's session and the logs; its path is short, because Ray puts sockets below it."""
    folder = Path(tempfile.gettempdir()) / f"{PREFIX}{owner}"
    folder.mkdir()
    return folder


def remove_leftovers() -> None:
    """Removes what harnesses have left whose process is gone."""
    for owner, _ in list(marked_processes()):
        if not psutil.pid_exists(owner):
            kill_marked(owner)
    if missing_for(["ip", "mount", "umount"]) is None:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8")
        for owner_text, point in reversed(re.findall(rf"^{PREFIX}(\d+) (\S+)", mounts, flags=re.MULTILINE)):
            if not psutil.pid_exists(int(owner_text)):
                run_tool("umount", "-l", point)
        links = run_tool("ip", "netns", "list") + run_tool("ip", "-o", "link", "show", "type", "bridge")
        for owner in {int(found) for found in re.findall(rf"\b(?:{PREFIX}|chb)(\d+)\b", links)}:
            if not psutil.pid_exists(owner):
                remove_networks(owner)
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        owner_text = folder.name.removeprefix(PREFIX)
        if owner_text.isdigit() and not psutil.pid_exists(int(owner_text)):
            shutil.rmtree(folder, ignore_errors=True)  # only space is at stake
