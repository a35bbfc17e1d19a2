"""A forked child is as one that was started on its own, and whoever forks it may die or hang."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from rabbitflow.worker import forking
from rabbitflow.worker.forking import END_UNSEEN, Fork
from rabbitflow.worker.process import Child, Order, ended
from rabbitflow.worker.starting import Starter
from tests.harness.waiting import eventually

WAITS = """
import os, sys, time
from pathlib import Path
Path(f"{os.getpid()}.argv").write_text(" ".join(sys.argv[1:2] + sys.orig_argv[1:4]))
while True:
    time.sleep(3600)
"""
ENDS = {"os._exit(0)": 0, "os._exit(75)": 75, "os.kill(os.getpid(), 9)": -9, "1 / 0": 1}

THREADS = (
    "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the modules are; the children have it as their current directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "waits.py").write_text(WAITS)
    return tmp_path


class Children:
    """Children that a test starts, and who starts them."""

    def __init__(self) -> None:
        self.starter = Starter()
        self._started: list[Child] = []

    async def start(self, module: str, *, forks: bool = True) -> Child:
        """A child that begins to import a module."""
        child = await Child.start(Order(module, "payment", {}), self.starter, forks=forks)
        self._started.append(child)
        return child

    async def waiting(self, *, forks: bool = True) -> Child:
        """A child that is in its module, which waits for ever."""
        child = await self.start("waits", forks=forks)
        await eventually(Path(f"{child.process.pid}.argv").exists, within_s=30)
        return child

    async def close(self) -> None:
        for child in self._started:
            child.kill("the test ends")
            await child.wait()
        await self.starter.close()


@pytest.fixture
async def children() -> AsyncIterator[Children]:
    children = Children()
    yield children
    await children.close()


def server_of(child: Child) -> psutil.Process:
    server = psutil.Process(child.process.pid).parent()
    assert server is not None
    assert "rabbitflow.worker.forkserver" in server.cmdline()
    return server


def state_of(child: Child) -> dict[str, object]:
    """What the system knows of a child that a handler, or an operator, may rely on."""
    process = psutil.Process(child.process.pid)
    status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return {
        "says of itself": Path(f"{process.pid}.argv").read_text(),
        "is shown as": " ".join(process.cmdline()).rpartition(" ")[0],
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
        "process group is its own": os.getpgid(process.pid) == process.pid,
        "directory": process.cwd(),
        "input": Path(f"/proc/{process.pid}/fd/0").readlink(),
        "signals": [line for line in status if line.startswith(("SigBlk", "SigIgn", "SigCgt"))],
    }


async def test_a_fork_is_as_a_child_on_an_interpreter_of_its_own(children: Children) -> None:
    spawned = await children.waiting(forks=False)
    forks = [await children.waiting() for _ in range(3)]
    assert not isinstance(spawned.process, Fork)
    assert all(isinstance(child.process, Fork) for child in forks)
    assert len({server_of(child) for child in forks}) == 1
    # The last one has no descriptor of those before it either.
    for child in forks:
        assert state_of(child) == state_of(spawned)


@pytest.mark.parametrize("forks", [True, False])
async def test_how_a_child_ended_is_told(children: Children, here: Path, forks: bool) -> None:
    for number, (code, status) in enumerate(ENDS.items()):
        (here / f"ends{number}.py").write_text(f"import os\n{code}\n")
        child = await children.start(f"ends{number}", forks=forks)
        assert await child.wait() == child.process.returncode == status
        with pytest.raises(ProcessLookupError):
            child.process.send_signal(signal.SIGTERM)
    (here / "nothing.py").touch()
    child = await children.start("nothing", forks=forks)
    assert await child.wait() == 78
    assert child.failure == "module nothing defines no consumer named 'payment'"


async def test_a_signal_that_comes_before_the_child_is_itself_is_not_lost(
    children: Children,
) -> None:
    for _ in range(20):
        child = await children.start("waits")
        child.terminate()
        assert await child.wait() == -signal.SIGTERM


async def test_children_outlive_the_process_that_forked_them(children: Children) -> None:
    told, killed = await children.waiting(), await children.waiting()
    before = server_of(told)
    before.kill()
    # Also where it is seen only with the next start.
    following = await children.waiting()
    await eventually(lambda: not before.is_running())
    if not isinstance(following.process, Fork):
        following = await children.waiting()
    assert server_of(following) != before
    assert psutil.Process(told.process.pid).is_running()
    told.terminate()
    killed.kill("enough")
    assert [await told.wait(), await killed.wait()] == [END_UNSEEN, END_UNSEEN]
    assert ended(END_UNSEEN) == "nobody saw how"
    following.terminate()
    assert await following.wait() == -signal.SIGTERM


async def test_one_that_hangs_is_given_up_and_its_late_child_ends(
    children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forking, "FORK_WITHIN_S", 0.2)
    server = server_of(await children.waiting())
    server.suspend()
    instead = await children.waiting()
    assert not isinstance(instead.process, Fork)
    await eventually(lambda: not server.is_running())


async def test_a_start_that_is_given_up_leaves_nobody(children: Children) -> None:
    server = server_of(await children.waiting())
    server.suspend()
    giving_up = asyncio.create_task(children.start("waits"))
    await asyncio.sleep(0)
    giving_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await giving_up
    server.resume()
    following = await children.waiting()
    assert isinstance(following.process, Fork)
    await eventually(lambda: [p.pid for p in server.children()][1:] == [following.process.pid])


@contextmanager
def descriptors_left(process: psutil.Process, spare: int) -> Iterator[None]:
    listed = list(Path(f"/proc/{process.pid}/fd").iterdir())
    # Not the one by which they were listed.
    used = {int(path.name) for path in listed if path.is_symlink()}
    free = sorted(set(range(len(used) + spare + 1)) - used)
    limits = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (free[spare], limits[1]))
    try:
        yield
    finally:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, limits)


async def test_a_server_without_descriptors_says_so_and_serves_on(children: Children) -> None:
    server = server_of(await children.waiting())
    # None for the child's line, then none for what stands for the child.
    for spare in (0, 1):
        with descriptors_left(server, spare), pytest.raises(OSError, match="Too many open files"):
            await children.start("waits")
        assert len(server.children()) == 1
    assert server_of(await children.waiting()) == server


async def test_without_descriptors_nothing_is_started_and_nobody_is_left(
    children: Children,
) -> None:
    server = server_of(await children.waiting())
    # None for the socket to the child, then none for what stands for the child.
    for spare in (0, 2):
        with (
            descriptors_left(psutil.Process(), spare),
            pytest.raises(OSError, match="Too many open files"),
        ):
            await children.start("waits")
    await eventually(lambda: not server.is_running())
    assert server_of(await children.waiting()) != server


async def test_where_every_python_has_threads_nothing_is_forked(
    children: Children,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (here / "sitecustomize.py").write_text(THREADS)
    monkeypatch.setenv("PYTHONPATH", str(here))
    caplog.set_level("INFO")
    for _ in range(2):
        assert not isinstance((await children.waiting()).process, Fork)
    assert [record.getMessage() for record in caplog.records] == [
        "every child starts an interpreter of its own: this environment starts 1 more threads in"
        " every Python process"
    ]


async def test_the_process_that_forks_ends_with_its_supervisor(children: Children) -> None:
    child = await children.waiting()
    server = server_of(child)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        server.send_signal(number)
    assert isinstance((await children.waiting()).process, Fork), "it hears no signal but the last"
    await children.starter.close()
    await eventually(lambda: not server.is_running())
    assert psutil.Process(child.process.pid).is_running()
