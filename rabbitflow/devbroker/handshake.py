"""How a connection begins: the protocol header, who it is, what both sides can take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pamqp.commands import Connection

from rabbitflow._version import __version__
from rabbitflow.devbroker import access
from rabbitflow.devbroker.frames import FRAME_MAX, Method
from rabbitflow.devbroker.replies import ConnectionRefusal

PRODUCT = "rabbitflow devbroker"
CHANNEL_MAX = 2047
FRAME_MIN = 4096
HANDSHAKE_WITHIN_S = 10.0

_CAPABILITIES = {
    "publisher_confirms": True,
    "exchange_exchange_bindings": True,
    "basic.nack": True,
    "consumer_cancel_notify": True,
    "consumer_priorities": True,
    "authentication_failure_close": True,
    "per_consumer_qos": True,
    "connection.blocked": False,
    "direct_reply_to": False,
}


@dataclass(frozen=True, slots=True)
class Agreed:
    """What a handshake came to.

    Fields:
        user: who logged in.
        vhost: that was opened.
        frame_max: the largest frame either side sends, in bytes.
        channel_max: the highest channel number.
        heartbeat_s: 0 for none.
        hears_cancels: the client wants to know when its consumer is cancelled.
    """

    user: str
    vhost: str
    frame_max: int
    channel_max: int
    heartbeat_s: int
    hears_cancels: bool


class Handshake:
    """Answers the client's methods until the connection is open.

    Args:
        users: by name.
        vhosts: that there are.
        heartbeat_s: that the broker proposes; the client may choose another.
    """

    def __init__(
        self, users: Mapping[str, access.User], vhosts: Mapping[str, object], heartbeat_s: int
    ) -> None:
        self._users = users
        self._vhosts = vhosts
        self._heartbeat_s = heartbeat_s
        self._expected: type[Method] = Connection.StartOk
        self._user = ""
        self._hears_cancels = False
        self._tuned = Connection.TuneOk(CHANNEL_MAX, FRAME_MAX, heartbeat_s)
        self.agreed: Agreed | None = None
        """Set once the client has opened a virtual host."""

    def start(self) -> Method:
        """Return the broker's first method."""
        properties: dict[str, Any] = {
            "product": PRODUCT,
            "version": __version__,
            "platform": "Python",
            "information": "for development and tests; keeps nothing on disk",
            "capabilities": _CAPABILITIES,
        }
        return Connection.Start(0, 9, properties, "PLAIN", "en_US")

    def answer(self, method: Method) -> Method:
        """Return what the broker says to a method.

        Raises:
            ConnectionRefusal: 403, wrong user or password; 530, no such virtual host, or limits
                that do not fit; 503, it is not this method's turn.
        """
        if not isinstance(method, self._expected):
            raise ConnectionRefusal(503, f"{method.name} is not what comes next")
        if isinstance(method, Connection.StartOk):
            return self._log_in(method)
        if isinstance(method, Connection.Open):
            return self._open(method)
        raise ConnectionRefusal(503, f"{method.name} is not what comes next")

    def tune(self, method: Connection.TuneOk) -> None:
        """Note the client's limits, which are not answered. Raises as :meth:`answer`."""
        if self._expected is not Connection.TuneOk:
            raise ConnectionRefusal(503, f"{method.name} is not what comes next")
        for limit, asked, least, most in (
            ("frame_max", method.frame_max or 0, FRAME_MIN, FRAME_MAX),
            ("channel_max", method.channel_max or 0, 1, CHANNEL_MAX),
        ):
            # 0 asks for no limit at all, which is more than there is.
            if asked and asked < least:
                raise ConnectionRefusal(530, f"negotiated {limit} = {asked} is too low ({least})")
            if not asked or asked > most:
                raise ConnectionRefusal(530, f"negotiated {limit} = {asked} is too high ({most})")
        self._tuned = method
        self._expected = Connection.Open

    def _log_in(self, method: Connection.StartOk) -> Method:
        user = access.log_in(self._users, method.mechanism or "", method.response or "")
        if user is None:
            raise ConnectionRefusal(
                403,
                f"Login was refused using authentication mechanism {method.mechanism}."
                " For details see the broker logfile.",
            )
        self._user = user
        capabilities = (method.client_properties or {}).get("capabilities")
        if isinstance(capabilities, dict):
            self._hears_cancels = capabilities.get("consumer_cancel_notify") is True
        self._expected = Connection.TuneOk
        return Connection.Tune(CHANNEL_MAX, FRAME_MAX, self._heartbeat_s)

    def _open(self, method: Connection.Open) -> Method:
        vhost = method.virtual_host or ""
        if vhost not in self._vhosts:
            raise ConnectionRefusal(530, f"vhost {vhost} not found")
        self.agreed = Agreed(
            self._user,
            vhost,
            self._tuned.frame_max or FRAME_MAX,
            self._tuned.channel_max or CHANNEL_MAX,
            self._tuned.heartbeat or 0,
            self._hears_cancels,
        )
        return Connection.OpenOk()
