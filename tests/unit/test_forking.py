"""A forked child is as one that was started on its own, and whoever forks it may die or hang."""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import signal
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from rabbitflow.worker import forking
from rabbitflow.worker.forking import END_UNSEEN, Fork
from rabbitflow.worker.process import Child, Order, ended
from rabbitflow.worker.starting import MOST_FAILED_STARTS, Starter
from tests.harness.waiting import eventually

WAITS = """
import os, sys, time
from pathlib import Path
main = sys.modules["__main__"]
said = " ".join([main.__spec__.name, *sys.argv[1:2], *sys.orig_argv[1:4]])
Path(f"{os.getpid()}.part").write_text(said)
Path(f"{os.getpid()}.part").rename(f"{os.getpid()}.argv")
while True:
    time.sleep(3600)
"""
LEAVES_SOMEBODY = """
import os, time
from pathlib import Path
if left := os.fork():
    Path("left").write_text(str(left))
    os._exit(3)
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
        if forks:
            await self.starter.prepare()
        child = await Child.start(Order(module, "payment", {}), self.starter)
        self._started.append(child)
        return child

    async def waiting(self, *, forks: bool = True) -> Child:
        """A child that is in its module, which waits for ever."""
        child = await self.start("waits", forks=forks)
        await eventually(Path(f"{child.process.pid}.argv").exists, within_s=30)
        return child

    async def close(self) -> None:
        async with asyncio.timeout(30):
            for child in self._started:
                child.kill("the test ends")
                await child.wait()
            await self.starter.close()


@pytest.fixture
def customize(here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has some code run at the start of every Python process."""
    monkeypatch.setenv("PYTHONPATH", str(here))
    return lambda code: (here / "sitecustomize.py").write_text(textwrap.dedent(code)) and None


@pytest.fixture
async def children() -> AsyncIterator[Children]:
    children = Children()
    yield children
    await children.close()


def become_subreaper(adopts: bool) -> None:
    """Have this process adopt orphans below it, or not: PR_SET_CHILD_SUBREAPER of prctl(2)."""
    assert ctypes.CDLL(None).prctl(36, int(adopts), 0, 0, 0) == 0


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
        "is called": Path(f"/proc/{process.pid}/comm").read_text(),
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
    children: Children, customize: Callable[[str], None]
) -> None:
    customize("""
        import os, time
        setpgid = os.setpgid
        os.setpgid = lambda *which: (time.sleep(0.5), setpgid(*which))
    """)
    child = await children.start("waits")
    assert isinstance(child.process, Fork)
    child.terminate()
    async with asyncio.timeout(10):
        assert await child.wait() == -signal.SIGTERM


@pytest.mark.parametrize("adopts", [False, True])
async def test_children_outlive_the_process_that_forked_them(
    children: Children, adopts: bool, caplog: pytest.LogCaptureFixture
) -> None:
    told, killed = await children.waiting(), await children.waiting()
    before = server_of(told)
    # As for the first process of a container, orphans come to this one.
    become_subreaper(adopts)
    try:
        before.kill()
        # The start that finds out is no fork; that after it is one.
        following = await children.waiting()
        if not isinstance(following.process, Fork):
            following = await children.waiting()
        assert server_of(following) != before
        assert psutil.Process(told.process.pid).is_running()
        told.terminate()
        killed.kill("enough")
        async with asyncio.timeout(10):
            seen = [await told.wait(), await killed.wait()]
    finally:
        become_subreaper(False)
    assert seen == ([-signal.SIGTERM, -signal.SIGKILL] if adopts else [END_UNSEEN] * 2)
    assert ended(END_UNSEEN) == "nobody saw how"
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["the process that forks children is lost; they run on: it has ended"]


async def test_a_child_says_how_it_ends_where_nobody_sees_it(
    children: Children, here: Path
) -> None:
    (here / "later.py").write_text(f"{WAITS.partition('while')[0]}time.sleep(1)\n")
    child = await children.start("later")
    server_of(child).kill()
    async with asyncio.timeout(10):
        assert await child.wait() == 78
    assert child.failure == "module later defines no consumer named 'payment'"


async def test_one_that_hangs_is_given_up_with_the_next_start(
    children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = server_of(await children.waiting())
    monkeypatch.setattr(forking, "ANSWER_WITHIN_S", 0.2)
    server.suspend()
    instead = await children.waiting()
    assert not isinstance(instead.process, Fork)
    await eventually(lambda: not server.is_running())


async def test_one_that_hangs_is_given_up_with_the_next_end(
    children: Children, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    child, other = await children.waiting(), await children.waiting()
    monkeypatch.setattr(forking, "ANSWER_WITHIN_S", 0.2)
    server = server_of(child)
    server.suspend()
    child.kill("enough")
    async with asyncio.timeout(10):
        assert await child.wait() == END_UNSEEN
    await eventually(lambda: not server.is_running())
    assert psutil.Process(other.process.pid).is_running()
    assert "it does not tell how a child ended" in caplog.text


async def test_a_start_that_is_given_up_leaves_nobody(children: Children) -> None:
    server = server_of(await children.waiting())
    server.suspend()
    this = psutil.Process()
    before = this.num_fds()
    giving_up = asyncio.create_task(children.start("waits"))
    await eventually(
        lambda: this.num_fds() > before, what="it has a socket for the child, and asks"
    )
    giving_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await giving_up
    server.resume()
    following = await children.waiting()
    assert server_of(following) == server
    await eventually(lambda: [p.pid for p in server.children()][1:] == [following.process.pid])


async def test_of_many_starts_at_once_each_has_its_own_deadline(
    children: Children, customize: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    customize("""
        import os, time
        fork = os.fork
        os.fork = lambda: (time.sleep(0.1), fork())[1]
    """)
    monkeypatch.setattr(forking, "ANSWER_WITHIN_S", 1.0)
    async with asyncio.TaskGroup() as group:
        starts = [group.create_task(children.waiting()) for _ in range(20)]
    assert len({server_of(start.result()).pid for start in starts}) == 1


@pytest.mark.parametrize("forks", [True, False])
async def test_who_a_child_leaves_behind_does_not_keep_its_end_a_secret(
    children: Children, here: Path, forks: bool
) -> None:
    (here / "parent.py").write_text(LEAVES_SOMEBODY)
    child = await children.start("parent", forks=forks)
    async with asyncio.timeout(10):
        assert await child.wait() == 3
    psutil.Process(int((here / "left").read_text())).kill()


async def test_without_a_process_the_server_says_so_and_serves_on(
    children: Children, here: Path, customize: Callable[[str], None]
) -> None:
    customize("""
        import errno, os
        from pathlib import Path
        fork = os.fork
        def refused():
            if Path("full").exists():
                raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
            return fork()
        os.fork = refused
    """)
    child = await children.waiting()
    (here / "full").touch()
    with pytest.raises(OSError, match="Resource temporarily unavailable"):
        await children.start("waits")
    (here / "full").unlink()
    assert server_of(await children.waiting()) == server_of(child)


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


@pytest.mark.parametrize("spare", [0, 2])
async def test_without_descriptors_nothing_is_started_and_nobody_is_left(
    children: Children, spare: int
) -> None:
    child = await children.waiting()
    # None for the socket to the child, or none for what stands for the child.
    with (
        descriptors_left(psutil.Process(), spare),
        pytest.raises(OSError, match="Too many open files"),
    ):
        await children.start("waits")
    server = server_of(child)
    await eventually(lambda: [p.pid for p in server.children()] == [child.process.pid])
    assert server_of(await children.waiting()) == server


@pytest.mark.parametrize("does", ["os._exit(1)", "os.kill(os.getpid(), 19)"])
async def test_a_server_that_never_serves_is_given_up_after_some_tries(
    children: Children,
    customize: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    does: str,
) -> None:
    customize(f"""
        import os, sys
        if "rabbitflow.worker.forkserver" in sys.orig_argv:
            {does}
    """)
    monkeypatch.setattr(forking, "START_WITHIN_S", 0.5)
    for _ in range(MOST_FAILED_STARTS + 1):
        assert not isinstance((await children.start("waits")).process, Fork)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == MOST_FAILED_STARTS
    assert all(line.startswith("the process that forks children can't be") for line in said)


async def test_where_every_python_has_threads_nothing_is_forked(
    children: Children,
    customize: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    customize(THREADS)
    caplog.set_level("INFO")
    for _ in range(2):
        assert not isinstance((await children.waiting()).process, Fork)
    assert [record.getMessage() for record in caplog.records] == [
        "every child gets an interpreter of its own: something starts threads in every Python"
        " process here, 1 in this one"
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
