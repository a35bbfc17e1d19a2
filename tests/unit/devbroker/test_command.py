"""``rabbitflow broker`` says what it is, where it listens, and what is wrong in one line."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import aiormq

COMMAND = [sys.executable, "-m", "rabbitflow", "broker"]


@contextmanager
def started(*options: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_its_first_line_says_where_it_is_and_that_it_keeps_nothing() -> None:
    with started("--port", "0") as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        found = re.fullmatch(
            r"rabbitflow broker on 127\.0\.0\.1 port (\d+): keeps nothing on disk,"
            r" for development and tests, not for production\n",
            first,
        )
        assert found is not None, first
        connection = await aiormq.connect(f"amqp://guest:guest@127.0.0.1:{found[1]}/")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.communicate() == ("", "")
        await connection.close()


def test_a_taken_port_is_refused_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [*COMMAND, "--port", port], capture_output=True, text=True, timeout=30, check=False
        )
    assert done.returncode == 78
    assert done.stdout == ""
    said = f"rabbitflow: port {port} of 127.0.0.1 is taken; choose another with --port\n"
    assert done.stderr == said


def test_to_be_reached_from_outside_it_has_to_be_told_and_warns() -> None:
    with started("--host", "0.0.0.0", "--port", "0") as process:
        assert process.stderr is not None
        warning = process.stderr.readline()
        assert warning.startswith("warning: whoever reaches 0.0.0.0 can read and write")
