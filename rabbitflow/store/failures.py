"""What goes wrong in a database, said in the store's own errors."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import errors as postgres
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from rabbitflow.errors import StoreError, StoreUnavailable


@contextmanager
def store_failures(shown: object) -> Iterator[None]:
    """Raise what a driver raises within as ``StoreUnavailable`` or ``StoreError``.

    Args:
        shown: the database without its password, for the message.
    """
    try:
        yield
    except DBAPIError as error:
        raise store_failure(error.orig or error, shown) from error
    except (psycopg.Error, sqlite3.Error) as error:
        raise store_failure(error, shown) from error
    except (PoolTimeout, OSError) as error:
        raise StoreUnavailable(f"the store at {shown} can't be reached: {error}") from error


def store_failure(error: BaseException, shown: object) -> StoreError:
    """Return the error of ours for an error of a database driver."""
    said = " ".join(str(error).split())
    if isinstance(error, postgres.DiskFull) or sqlite_code(error) == sqlite3.SQLITE_FULL:
        return StoreError(
            f"the disk of the store at {shown} is full: nothing was stored; make room and append"
            f" again ({said})"
        )
    if sqlite_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreUnavailable(
            f"the store at {shown} is busy: another process holds its write lock"
        )
    if sqlite_code(error) in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR):
        return StoreUnavailable(f"the store at {shown} can't be opened or read: {said}")
    if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
        return StoreUnavailable(f"the store at {shown} can't be reached: {said}")
    return StoreError(f"the store at {shown} refused: {said}")


def sqlite_code(error: BaseException) -> int | None:
    """The primary result code of SQLite; an extended one holds it in its low byte."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
