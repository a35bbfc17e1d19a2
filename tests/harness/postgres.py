"""A PostgreSQL for the tests: one that is given, one that runs, or a private cluster."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from tests.harness.node import free_port

START_WITHIN_S = 30.0


def running_url() -> str | None:
    """RABBITFLOW_TEST_POSTGRES_URL, else the server on localhost where it lets us in."""
    given = os.environ.get("RABBITFLOW_TEST_POSTGRES_URL")
    if given:
        return given
    url = "postgresql://postgres@localhost:5432/postgres"
    return url if _answers(url) else None


def binaries() -> Path | None:
    """The folder of initdb and postgres, of the newest version, or None where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=_version)
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


def _version(initdb: Path) -> int:
    return int(initdb.parts[-3]) if initdb.parts[-3].isdigit() else 0


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


@contextmanager
def private_cluster(binaries: Path) -> Iterator[str]:
    """A PostgreSQL of our own in a temporary folder; yields its URL. PostgreSQL refuses to run as
    root, so root starts it as the user ``postgres`` that its package made."""
    folder = Path(tempfile.mkdtemp(prefix="rabbitflow-postgres-"))
    is_root = os.geteuid() == 0
    become = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    prefix = become if is_root else []
    if is_root:
        shutil.chown(folder, "postgres", "postgres")
    port = free_port()
    data = folder / "data"
    server = None
    try:
        subprocess.run(
            [*prefix, binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N"],
            check=True,
            capture_output=True,
            cwd=folder,
        )
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [
                    *(*prefix, binaries / "postgres", "-D", data, "-p", str(port)),
                    *("-k", folder, "-c", "listen_addresses=127.0.0.1"),
                ],
                stdout=log,
                stderr=log,
                cwd=folder,
            )
        url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        deadline = time.monotonic() + START_WITHIN_S
        while not _answers(url):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start: {(folder / 'log').read_text()}")
            time.sleep(0.1)
        yield url
    finally:
        if server is not None:
            server.terminate()
            server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def schema(url: str) -> Iterator[str]:
    """A schema that nobody else uses; yields the URL of a store in it."""
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'CREATE SCHEMA "{name}"')
        try:
            joint = "&" if "?" in url else "?"
            yield f"{url}{joint}options=-csearch_path%3D{name}"
        finally:
            connection.execute("SET client_min_messages = warning")
            connection.execute(f'DROP SCHEMA "{name}" CASCADE')
