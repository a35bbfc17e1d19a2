"""rabbitflow: announce what happened, let others react. Event workers on RabbitMQ."""

from rabbitflow._version import __version__

__all__ = ["__version__"]
