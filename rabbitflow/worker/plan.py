"""What a worker was asked to run, and on which terms, in plain values.

Whoever supervises lives as long as the worker and handles no event. It needs neither pydantic nor
the client library, so it is told what it has to know in values that need nothing to be read.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rabbitflow.brokerurl import is_broker_url
from rabbitflow.errors import ConfigurationError

if TYPE_CHECKING:
    from rabbitflow.settings import Settings


@dataclass(frozen=True, slots=True)
class Plan:
    """What a worker was asked to run.

    Fields:
        modules: to search for consumers.
        processes: how many children each consumer gets.
        concurrency: in place of the consumers' own.
        reload: start everything anew when a Python file below the current directory changes.
        log_format: of the children, ``text`` or ``json``.
        log_level: of the children.
    """

    modules: tuple[str, ...]
    processes: int = 1
    concurrency: int | None = None
    reload: bool = False
    log_format: str = "text"
    log_level: str = "INFO"


@dataclass(frozen=True, slots=True)
class Terms:
    """What a supervisor knows of the settings.

    Fields:
        shown_url: of the broker, without its password.
        namespace: prefixes every name on the broker.
        metrics_host: address of the status server.
        metrics_port: its port; 0 for none.
        is_port_asked: whether somebody chose that very port.
        shutdown_timeout_s: how long a stopping child may finish, in seconds.
        stall_timeout_s: a child that is silent for so long is replaced, in seconds.
        state_dir: where strikes are kept.
        url_file: holds the URL, which may be another one by the next start of a child.
        order: all settings as a child is told them, the URL with its password. Never print it.
    """

    shown_url: str
    namespace: str | None
    metrics_host: str
    metrics_port: int
    is_port_asked: bool
    shutdown_timeout_s: float
    stall_timeout_s: float
    state_dir: Path
    url_file: Path | None
    order: dict[str, Any] = field(repr=False)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return what a supervisor has to know of ``settings``."""
        return cls(
            shown_url=settings.shown_url,
            namespace=settings.namespace,
            metrics_host=settings.metrics_host,
            metrics_port=settings.metrics_port,
            is_port_asked="metrics_port" in settings.model_fields_set,
            shutdown_timeout_s=settings.shutdown_timeout_s,
            stall_timeout_s=settings.stall_timeout_s,
            state_dir=settings.state_dir,
            url_file=settings.url_file,
            order=settings.as_order(),
        )

    def as_json(self) -> dict[str, Any]:
        """Return the terms as JSON, the URL with its password."""
        file = self.url_file
        return asdict(self) | {
            "state_dir": str(self.state_dir),
            "url_file": None if file is None else str(file),
        }

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Self:
        """Return what :meth:`as_json` wrote."""
        file = told["url_file"]
        return cls(
            **told
            | {
                "state_dir": Path(told["state_dir"]),
                "url_file": None if file is None else Path(file),
            }
        )

    def renewed(self) -> Self:
        """Return the terms with the URL that their file holds now: credentials are rotated.

        Raises:
            ConfigurationError: the file can't be read, or holds no URL.
        """
        if self.url_file is None:
            return self
        try:
            url = self.url_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"a URL can't be read from a file: {error}") from error
        if not url or not all(map(is_broker_url, url.split())):
            raise ConfigurationError(f"{self.url_file} does not hold a broker's URL")
        return replace(self, order=self.order | {"url": url})
