"""The event store: what happened is kept, and the state follows from it. The extra ``store``."""

from rabbitflow.errors import ConfigurationError

try:
    import aiosqlite as _aiosqlite  # noqa: F401
    import psycopg as _psycopg  # noqa: F401
    import sqlalchemy as _sqlalchemy  # noqa: F401
except ImportError as missing:
    raise ConfigurationError(
        f"the event store needs {missing.name}: pip install 'rabbitflow[store]'"
    ) from missing

from rabbitflow.store.eventstore import EventStore
from rabbitflow.store.fold import applies
from rabbitflow.store.journal import Appended
from rabbitflow.store.projection import Projection
from rabbitflow.store.rebuild import Rebuilt
from rabbitflow.store.recorded import Recorded
from rabbitflow.store.verification import Fault, Verification, verify

__all__ = [
    "Appended",
    "EventStore",
    "Fault",
    "Projection",
    "Rebuilt",
    "Recorded",
    "Verification",
    "applies",
    "verify",
]
