"""What is a broker's URL, told without any library: whoever supervises a worker has to know."""

from __future__ import annotations

from urllib.parse import urlsplit


def is_broker_url(written: str) -> bool:
    """Whether this is the URL of one broker node, ``amqp://`` or ``amqps://``."""
    try:
        url = urlsplit(written)
        # Read for its check: it raises where the port is none.
        _ = url.port
    except ValueError:
        return False
    # A bare / ? or # in a password ends the authority there, and the rest would be shown.
    strayed = "@" in url.path + url.query or url.fragment
    return url.scheme in ("amqp", "amqps") and bool(url.hostname) and not strayed
