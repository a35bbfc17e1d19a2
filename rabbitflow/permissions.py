"""Who needs what of RabbitMQ: the narrowest permissions with which each user can do its part.

RabbitMQ matches three regular expressions against the names of exchanges and queues: *configure*
to create and delete, *write* to publish, *read* to consume (rabbitmq.com/docs/access-control).
Everything here goes with workers and publishers that declare nothing; the operator does.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from rabbitflow.errors import ConfigurationError
from rabbitflow.settings import Settings
from rabbitflow.topology import DEFAULT_EXCHANGE, SERVER_NAMED, Names

NOTHING: Final = "^$"
OPERATOR: Final = "operator"
PRODUCER: Final = "producer"


class Reacting(Protocol):
    """A consumer, as far as its permissions follow from it."""

    @property
    def name(self) -> str: ...
    @property
    def event_types(self) -> tuple[str, ...]: ...
    @property
    def publishes(self) -> tuple[str, ...]: ...
    @property
    def partitions(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Grant:
    """What one user is allowed.

    Fields:
        user: its name on the broker.
        role: what it is for, such as ``consumer payment``.
        configure: which exchanges and queues it may create and delete, as a regular expression.
        write: which exchanges it may publish to.
        read: which queues it may consume from.
    """

    user: str
    role: str
    configure: str
    write: str
    read: str

    def command(self, vhost: str) -> str:
        """Return the line that an administrator runs on the broker's machine."""
        patterns = (self.configure, self.write, self.read)
        return shlex.join(["rabbitmqctl", "set_permissions", "-p", vhost, self.user, *patterns])


def grants(
    consumers: Sequence[Reacting],
    producers: Mapping[str, Iterable[str]],
    settings: Settings,
    user_prefix: str = "",
) -> list[Grant]:
    """Return what each consumer's user, each producer's and the operator's are allowed.

    Args:
        consumers: whose workers run with ``--no-declare``.
        producers: the event types that each one announces; where none is named, one that announces
            all event types of ``consumers``.
        settings: the namespace.
        user_prefix: before the name of every user.

    Raises:
        ConfigurationError: two of them would be the same user.
    """
    names = Names(settings.namespace)
    if not producers:
        every = {one for consumer in consumers for one in consumer.event_types}
        producers = {PRODUCER: sorted(every)}
    found = [_of_consumer(consumer, names, user_prefix) for consumer in consumers]
    found += [
        Grant(
            user_prefix + name,
            f"producer of {', '.join(event_types)}",
            NOTHING,
            _only(names.exchange(event_type) for event_type in event_types),
            NOTHING,
        )
        for name, event_types in producers.items()
    ]
    found.append(_of_operator(settings, user_prefix))
    users = [grant.user for grant in found]
    twice = sorted({user for user in users if users.count(user) > 1})
    if twice:
        raise ConfigurationError(
            f"{', '.join(twice)} would be the user of several; name producers otherwise with"
            " --producer NAME=TYPE"
        )
    return found


def _of_consumer(consumer: Reacting, names: Names, user_prefix: str) -> Grant:
    # Its retries and dead letters go by the default exchange. To look for marks and for queues that
    # should be there takes no permission: those declarations are passive.
    announced = [names.exchange(event_type) for event_type in consumer.publishes]
    partitions = range(consumer.partitions)
    return Grant(
        user_prefix + consumer.name,
        f"consumer {consumer.name}",
        _only(names.partition_lock(consumer.name, number) for number in partitions),
        _only([DEFAULT_EXCHANGE, *announced]),
        _only(
            [
                names.queue(consumer.name),
                names.workers(consumer.name),
                *(names.partition(consumer.name, number) for number in partitions),
            ]
        ),
    )


def _of_operator(settings: Settings, user_prefix: str) -> Grant:
    role = "operator: topology, dlq, replay, pause, log, status, doctor"
    if settings.namespace is None:
        return Grant(user_prefix + OPERATOR, role, ".*", ".*", ".*")
    ours = re.escape(Names(settings.namespace).queue(""))
    own = f"{re.escape(SERVER_NAMED)}.*"
    return Grant(
        user_prefix + OPERATOR,
        role,
        f"^({ours}.*|{own})$",
        f"^({ours}.*|{own}|{re.escape(DEFAULT_EXCHANGE)})$",
        f"^({ours}.*|{own})$",
    )


def _only(names: Iterable[str]) -> str:
    """Return what matches these names and no other. RabbitMQ searches, so both ends are said."""
    escaped = sorted(map(re.escape, names))
    return f"^({'|'.join(escaped)})$" if escaped else NOTHING
