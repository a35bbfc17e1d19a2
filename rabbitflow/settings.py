"""Settings of one process: from the environment, from a credential file, from the command line."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from yarl import URL

from rabbitflow.brokerurl import is_broker_url
from rabbitflow.errors import ConfigurationError

_IN_FILES = ("url", "database_url")
DEFAULT_URL = "amqp://guest:guest@localhost:5672/"
DEFAULT_DATABASE_URL = "sqlite:///events.db"
NAMESPACE_PATTERN = r"^[A-Za-z][A-Za-z0-9_-]{0,62}$"


def _default_state_dir() -> Path:
    granted = os.environ.get("STATE_DIRECTORY")
    return Path(granted.split(":")[0]) if granted else Path.home() / ".local/state/rabbitflow"


class Settings(BaseModel):
    """What a process needs to know of its surroundings. :func:`load_settings` reads every field
    from ``RABBITFLOW_<NAME>``.

    Fields:
        url: of the broker, ``amqp://`` or ``amqps://``; of a cluster one for each node, separated
            by white space, which are tried in a random order. Kept secret when printed.
        url_file: a file that holds the URL (systemd's ``LoadCredential=``); wins over ``url``.
        tls_ca: for ``amqps://``, a file with the certificates of the authorities to trust; the
            system's where it is not given.
        tls_cert: the certificate that a client shows, with its chain; a PEM file.
        tls_key: its private key; where it is not given, in the same file.
        signing_key_file: a file with the private key that what is announced is signed with; nothing
            is signed where it is not given.
        trusted_keys_file: a file with the public keys of producers; a worker that is given it
            refuses events that none of them signed.
        encryption_keys_file: a file with the keys of encrypted fields; the first encrypts.
        namespace: prefixes every name on the broker with ``<namespace>.``; none by default.
        queue_type: ``quorum`` (replicated, counts deliveries) or ``classic``.
        event_log: keep every announced event in a stream beside the consumers' queues.
        event_log_max_age: how long, as RabbitMQ writes it (``7D``, ``12h``).
        event_log_max_bytes: how much per event type, in bytes.
        declare: create exchanges and queues; off where an administrator applied them before.
        publish_timeout_s: how long a publish may take before it fails, in seconds.
        connect_timeout_s: how long one attempt to connect may take, in seconds.
        heartbeat_s: AMQP heartbeat, in seconds; a silent peer is given up after about three.
        max_body_bytes: largest event body that is published or handled, in bytes.
        shutdown_timeout_s: how long a stopping worker lets handlers finish, in seconds.
        stall_timeout_s: a child whose event loop does not turn for so long is replaced, in seconds.
        state_dir: where a worker remembers which events killed their process; systemd's
            ``STATE_DIRECTORY`` or ``~/.local/state/rabbitflow`` where it is not given.
        database_url: of the event store, ``sqlite:///file.db`` or ``postgresql://…``; kept secret
            when printed.
        database_url_file: a file that holds that URL; wins over ``database_url``.
        inbox_keep_days: how long a consumer remembers which events it handled once, in days; longer
            than an event may wait among dead letters or come back by a replay.
        metrics_host: address of ``/metrics``, ``/healthz`` and ``/readyz``.
        metrics_port: their port; 0 for none.
        management_url: of the broker's management API, ``http://user:password@host:15672``, for
            what AMQP does not tell; kept secret when printed.
    """

    model_config = ConfigDict(
        extra="ignore",
        frozen=True,
        # A URL that does not fit still holds its password.
        hide_input_in_errors=True,
    )

    url: SecretStr = SecretStr(DEFAULT_URL)
    url_file: Path | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    signing_key_file: Path | None = None
    trusted_keys_file: Path | None = None
    encryption_keys_file: Path | None = None
    namespace: Annotated[str, Field(pattern=NAMESPACE_PATTERN)] | None = None
    queue_type: Literal["quorum", "classic"] = "quorum"
    event_log: bool = True
    event_log_max_age: Annotated[str, Field(pattern=r"^[1-9][0-9]*[YMDhms]$")] = "7D"
    event_log_max_bytes: Annotated[int, Field(gt=0)] = 5_000_000_000
    declare: bool = True
    publish_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    connect_timeout_s: Annotated[float, Field(gt=0)] = 5.0
    heartbeat_s: Annotated[int, Field(ge=1)] = 10
    max_body_bytes: Annotated[int, Field(gt=0)] = 1_048_576
    shutdown_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    stall_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    state_dir: Path = Field(default_factory=_default_state_dir)
    database_url: SecretStr = SecretStr(DEFAULT_DATABASE_URL)
    database_url_file: Path | None = None
    inbox_keep_days: Annotated[float, Field(gt=0)] = 30.0
    metrics_host: str = "127.0.0.1"
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 9464
    management_url: SecretStr | None = None

    @field_validator("namespace", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return value or None

    @field_validator("url")
    @classmethod
    def _is_amqp(cls, value: SecretStr) -> SecretStr:
        written = value.get_secret_value().split()
        if not written or not all(map(_is_broker_url, written)):
            raise ValueError(
                "not a broker's URL; write amqp://user:password@host:5672/vhost,"
                " with every / ? # @ and % inside a part percent-encoded"
            )
        return value

    @field_validator("namespace")
    @classmethod
    def _is_not_reserved(cls, value: str | None) -> str | None:
        # events.events.A would be the exchange of A here, and of events.A without a namespace.
        if value == "events":
            raise ValueError("every event's exchange begins with 'events', so it is no namespace")
        return value

    @property
    def broker_url(self) -> str:
        """The URL with its password, as it was written. Never print it."""
        return self.url.get_secret_value()

    @property
    def broker_urls(self) -> tuple[str, ...]:
        """The URL of each node with its password, for the connection alone. Never print them."""
        return tuple(self.broker_url.split())

    @property
    def shown_url(self) -> str:
        """The URLs without their password, for logs and errors."""
        return ", ".join(map(redact, self.broker_urls))

    def as_order(self) -> dict[str, Any]:
        """Return the settings as JSON for a child process, the URL with its password."""
        return {
            **self.model_dump(mode="json", exclude={"url_file", "database_url_file"}),
            "url": self.broker_url,
            "database_url": self.database_url.get_secret_value(),
        }


def _is_broker_url(written: str) -> bool:
    try:
        URL(written)
    except ValueError:
        return False
    return is_broker_url(written)


@cache
def _from_environment() -> type[Settings]:
    # Not at the top: a worker's children are told their settings and read no environment, and the
    # library for it takes 2 MiB of each.
    from pydantic_settings import BaseSettings, SettingsConfigDict  # noqa: PLC0415

    class Environment(Settings, BaseSettings):
        """The settings, what is not given read from the environment."""

        model_config = SettingsConfigDict(
            env_prefix="RABBITFLOW_", extra="ignore", frozen=True, hide_input_in_errors=True
        )

    return Environment


def load_settings(**overrides: Any) -> Settings:
    """Return the settings of this process; ``overrides`` that are not None win.

    Raises:
        ConfigurationError: a value does not fit, or a file that holds a URL can't be read.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    # An option wins over the file, also when the file is read again.
    given |= {f"{name}_file": None for name in _IN_FILES if name in given}
    try:
        environment = _from_environment()
        settings = environment(**given)
        kept = {
            name: file.read_text(encoding="utf-8").strip()
            for name in _IN_FILES
            if (file := getattr(settings, f"{name}_file")) is not None
        }
        return environment(**given, **kept) if kept else settings
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
            for fault in error.errors(include_url=False, include_input=False)
        )
        raise ConfigurationError(f"a setting does not fit: {faults}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"a URL can't be read from a file: {error}") from error


def redact(url: str) -> str:
    """Return ``url`` without its password, query and fragment, fit to be shown."""
    parsed = URL(url)
    shown = parsed.with_password(None) if parsed.password is not None else parsed
    return str(shown.with_query(None).with_fragment(None))
