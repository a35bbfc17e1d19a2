"""The store's tables are made and changed by numbered SQL files, one folder a database."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rabbitflow.errors import ConfigurationError, StoreError
from rabbitflow.store.database import shown
from rabbitflow.store.failures import store_failures

_CREATE = (
    "CREATE TABLE IF NOT EXISTS rabbitflow_migrations"
    " (name varchar(100) PRIMARY KEY, applied_at varchar(40) NOT NULL DEFAULT CURRENT_TIMESTAMP)"
)
_LOCK_KEY = 1918987875
"""Names our advisory lock on PostgreSQL; any number would do, as long as it stays."""


async def migrate(engine: AsyncEngine) -> list[str]:
    """Bring the store's tables up to date in one transaction; return what was applied.

    Several processes may do so at once: one does the work, the others wait. A database that is up
    to date is only read.

    Raises:
        ConfigurationError: a newer rabbitflow has changed the tables.
        StoreUnavailable: the database can't be reached.
        StoreError: it refused, such as for want of the right to create tables.
    """
    wanted = migrations(engine.dialect.name)
    with store_failures(shown(engine.url)):
        if not _missing(wanted, await _applied(engine)):
            return []
        async with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK_KEY})"))
            await connection.exec_driver_sql(_CREATE)
            missing = _missing(wanted, await _names(connection))
            for name in missing:
                await _apply(connection, wanted[name])
                await connection.execute(
                    text("INSERT INTO rabbitflow_migrations (name) VALUES (:name)"), {"name": name}
                )
        return missing


async def require_migrated(engine: AsyncEngine) -> None:
    """Raise unless the tables are up to date; nothing is written.

    Raises:
        ConfigurationError: they are missing, older or newer.
    """
    with store_failures(shown(engine.url)):
        missing = _missing(migrations(engine.dialect.name), await _applied(engine))
    if missing:
        raise ConfigurationError(
            f"the database has no event store, or an older one: {', '.join(missing)} not applied;"
            " open it once with a role that may create tables"
        )


def migrations(dialect: str) -> dict[str, str]:
    """Return the SQL of every migration for a database, by name, in order."""
    folder = files("rabbitflow.store").joinpath("migrations", dialect)
    found = sorted(folder.iterdir(), key=lambda file: file.name)
    return {
        file.name.removesuffix(".sql"): file.read_text(encoding="utf-8")
        for file in found
        if file.name.endswith(".sql")
    }


def _missing(wanted: dict[str, str], applied: set[str]) -> list[str]:
    unknown = sorted(applied - wanted.keys())
    if unknown:
        raise ConfigurationError(
            f"a newer rabbitflow has changed this database ({', '.join(unknown)}): upgrade this one"
        )
    return [name for name in wanted if name not in applied]


async def _applied(engine: AsyncEngine) -> set[str]:
    async with engine.connect() as connection:
        await connection.execution_options(sqlite_begin="DEFERRED")
        try:
            return await _names(connection)
        except DBAPIError as error:
            if _is_no_such_table(error):
                return set()
            raise


async def _names(connection: AsyncConnection) -> set[str]:
    rows = await connection.execute(text("SELECT name FROM rabbitflow_migrations"))
    return {name for (name,) in rows}


def _is_no_such_table(error: DBAPIError) -> bool:
    return getattr(error.orig, "sqlstate", None) == "42P01" or "no such table" in str(error.orig)


async def _apply(connection: AsyncConnection, script: str) -> None:
    if connection.dialect.name == "postgresql":
        raw: Any = (await connection.get_raw_connection()).driver_connection
        await raw.execute(script)
        return
    for statement in _statements(script):
        await connection.exec_driver_sql(statement)


def _statements(script: str) -> Iterator[str]:
    """Split a script for SQLite, whose own ``executescript`` would commit first."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        raise StoreError(f"a migration ends in the middle of a statement: {statement[-80:]!r}")
