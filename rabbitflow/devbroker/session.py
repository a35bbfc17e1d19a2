"""What the channels of one connection share: whose it is, and the way back to the client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rabbitflow.devbroker import access
from rabbitflow.devbroker.activity import Counters
from rabbitflow.devbroker.vhost import VirtualHost

if TYPE_CHECKING:
    from rabbitflow.devbroker.publishing import Publishing


@dataclass(slots=True)
class Faults:
    """What the broker is told to do wrong.

    Fields:
        holds_confirms: what is published is kept, and not confirmed.
    """

    holds_confirms: bool = False


@dataclass(slots=True, eq=False)
class Session:
    """One connection that is open.

    Fields:
        send: writes bytes to the client, at the end of this turn of the event loop.
        vhost: the virtual host it uses.
        user: who logged in.
        users: everybody the broker knows.
        frame_max: the largest frame the client takes.
        hears_cancels: whether the client wants to know when its consumer is cancelled.
        is_congested: the client reads more slowly than it is sent to; it gets no deliveries.
        confirming: channels that have something to confirm.
    """

    send: Callable[[bytes], None]
    vhost: VirtualHost
    user: str
    users: Mapping[str, access.User]
    counters: Counters
    faults: Faults
    frame_max: int
    hears_cancels: bool
    is_congested: bool = False
    confirming: list[Publishing] = field(default_factory=list)

    def check(self, permission: access.Permission, kind: str, name: str) -> None:
        """Check that the user may. Raises ChannelRefusal, 403."""
        access.check(self.users, self.user, permission, kind, name, self.vhost.name)

    def confirm(self) -> None:
        """Send the confirms that are due, unless the broker was told not to."""
        if self.faults.holds_confirms:
            return
        confirming, self.confirming = self.confirming, []
        for publishing in confirming:
            publishing.confirm()
