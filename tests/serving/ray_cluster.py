"""A Ray cluster of two machines on this one, each with a core, whose every process is gone afterwards."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

STORE = 150 << 20


class TwoNodes:
    """`environment` is what a process needs to find it."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.folder = tempfile.mkdtemp(prefix="two-nodes-", dir="/tmp")  # paths of sockets must be short
        self.environment = {"RAY_TMPDIR": self.folder, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        os.environ.update(self.environment)  # the processes inherit it, which is how they are found again
        head = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
        self.cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self.second: Any = None
        self.environment["RAY_ADDRESS"] = self.cluster.address

    def add_second(self) -> None:
        """Unless it is there."""
        if self.second is None:
            self.second = self.cluster.add_node(num_cpus=1, object_store_memory=STORE)

    @property
    def head_pid(self) -> int:
        """As `second_pid`."""
        return self.cluster.head_node.all_processes["raylet"][0].process.pid

    @property
    def second_pid(self) -> int:
        """Of its raylet, without which a node is dead."""
        return self.second.all_processes["raylet"][0].process.pid

    def workers(self, title: str, raylet: int | None = None) -> list[int]:
        """The processes of a class of actors, on the second node by default."""
        children = Path(f"/proc/{raylet or self.second_pid}/task/{raylet or self.second_pid}/children").read_text()
        return [pid for pid in map(int, children.split()) if f"ray::{title}" in content(pid, "cmdline")]

    def forget_second(self) -> None:
        """After its raylet was killed."""
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = None

    def survivors(self) -> list[int]:
        """Processes of this cluster."""
        numbers = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [pid for pid in numbers if f"RAY_TMPDIR={self.folder}" in content(pid, "environ")]

    def stop(self) -> list[int]:
        """Ends it; the processes that had to be killed."""
        self.cluster.shutdown()
        for name in self.environment:
            os.environ.pop(name, None)
        deadline = time.monotonic() + 60
        while (left := self.survivors()) and time.monotonic() < deadline:
            time.sleep(0.5)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        shutil.rmtree(self.folder, ignore_errors=True)
        return left


def content(pid: int, name: str) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
    return ""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """As in a worker with one core: the last digits of scores depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def two_nodes() -> Iterator[TwoNodes]:
    nodes = TwoNodes()
    try:
        nodes.add_second()
        yield nodes
    finally:
        left = nodes.stop()
    assert not left, "processes of Ray have survived"
