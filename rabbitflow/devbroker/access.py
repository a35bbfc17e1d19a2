"""Who may do what: users, and their permissions by name, as RabbitMQ's are."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rabbitflow.devbroker.replies import ChannelRefusal, named

Permission = Literal["configure", "write", "read"]


@dataclass(frozen=True, slots=True)
class User:
    """A user of the broker.

    Fields:
        password: kept out of its repr.
        configure: a pattern of what may be declared and deleted.
        write: of what may be published to and bound to.
        read: of what may be consumed and bound from.
    """

    password: str = field(repr=False)
    configure: str = ".*"
    write: str = ".*"
    read: str = ".*"


def log_in(users: Mapping[str, User], mechanism: str, response: str | bytes) -> str | None:
    """Return the user's name, or None where the broker does not let them in."""
    data = response.encode() if isinstance(response, str) else response
    if mechanism != "PLAIN":
        return None
    # RFC 4616: whom to act for, which is not used, then name and password, each after a NUL.
    _, first, rest = data.partition(b"\0")
    name, second, password = rest.partition(b"\0")
    if not (first and second):
        return None
    known = users.get(name.decode(errors="replace"))
    if known is None or not hmac.compare_digest(known.password.encode(), password):
        return None
    return name.decode()


def check(
    users: Mapping[str, User], user: str, permission: Permission, kind: str, name: str, vhost: str
) -> None:
    """Check a permission.

    Raises:
        ChannelRefusal: 403, the user may not.
    """
    known = users.get(user)
    pattern = "" if known is None else getattr(known, permission)
    if pattern == ".*":
        return
    # RabbitMQ knows the default exchange under a name of its own here. An empty pattern is nothing.
    if not pattern or re.search(pattern, name or "amq.default") is None:
        what = named(kind, name or "amq.default", vhost)
        raise ChannelRefusal(403, f"{permission} access to {what} refused for user '{user}'")
