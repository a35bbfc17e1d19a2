"""Each service as a user of its own: it can do its part, and nothing of a neighbour's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiormq
import pytest
from pamqp.commands import Basic
from pydantic import SecretStr
from yarl import URL

from rabbitflow import AccessRefused, Event, Publisher
from rabbitflow.settings import Settings
from rabbitflow.topology import Names
from tests.harness.broker import Probe
from tests.harness.command import Command
from tests.harness.node import Broker
from tests.harness.shop import EVENT_TYPES, EXAMPLES, SERVICES
from tests.harness.waiting import eventually
from tests.harness.workers import Worker

pytestmark = pytest.mark.only_on("rabbitmq", reason="the embedded broker has no users")


def binary(text: str) -> str:
    """A text as Erlang writes it."""
    return '<<"' + text.replace("\\", "\\\\") + '">>'


class Users:
    """The users that ``topology permissions`` asks for, as they stand on the broker."""

    def __init__(self, settings: Settings, granted: list[dict[str, str]]) -> None:
        self._settings = settings
        self._granted = granted
        self.password = secrets.token_hex(8)

    # In one call each: rabbitmqctl takes seconds to start, and there are ten users.
    def added(self) -> str:
        """What makes RabbitMQ have them, in Erlang."""
        steps = []
        for one in self._granted:
            patterns = [binary(one[name]) for name in ("configure", "write", "read")]
            user, by = binary(one["user"]), binary("tests")
            call = "rabbit_auth_backend_internal"
            steps.append(f"{call}:add_user({user}, {binary(self.password)}, {by})")
            steps.append(f'{call}:set_permissions({user}, <<"/">>, {", ".join(patterns)}, {by})')
        return ", ".join(steps) + "."

    def deleted(self) -> str:
        """What makes RabbitMQ have them no more."""
        call = "rabbit_auth_backend_internal:delete_user"
        steps = [f'catch {call}({binary(one["user"])}, <<"tests">>)' for one in self._granted]
        return ", ".join(f"({step})" for step in steps) + "."

    def settings(self, name: str) -> Settings:
        """What a process of that user is given."""
        url = URL(self._settings.broker_url).with_user(f"{self._settings.namespace}-{name}")
        secret = SecretStr(str(url.with_password(self.password)))
        return self._settings.model_copy(update={"url": secret, "declare": name == "operator"})


@pytest.fixture
def users(
    rabbitmq: Broker, settings: Settings, probe: Probe, rabbitflow: Command
) -> Iterator[Users]:
    if rabbitmq.ctl is None:
        pytest.skip("users take rabbitmqctl on the broker's own machine")
    prefix = f"{settings.namespace}-"
    printed = rabbitflow("topology", "permissions", "workers", "--user-prefix", prefix, "--json")
    assert printed.returncode == 0, printed.stderr
    users = Users(settings, json.loads(printed.stdout))
    probe.leaves(SERVICES, EVENT_TYPES)
    try:
        rabbitmq.ctl("eval", users.added())
        yield users
    finally:
        rabbitmq.ctl("eval", users.deleted())


@pytest.fixture
def applied(users: Users, tmp_path: Path) -> Users:
    """The users, and everything that the services need, declared by the operator."""
    applied = Command(users.settings("operator"), tmp_path)("topology", "apply", "workers")
    assert applied.returncode == 0, applied.stderr
    return users


async def attempt(settings: Settings, work: str, name: str) -> str:
    """Try one thing as a foreign client would; return "done" or "refused"."""
    connection = await aiormq.connect(settings.broker_url)
    try:
        channel = await connection.channel()
        match work:
            case "read":
                await channel.basic_get(name, no_ack=False)
            case "publish":
                await channel.basic_publish(b"{}", exchange=name, mandatory=True)
            case "delete":
                await channel.queue_delete(name, if_empty=True)
            case "empty":
                await channel.queue_purge(name)
            case "bind":
                await channel.queue_bind(name, Names(settings.namespace).exchange("ORDER_PLACED"))
            case _:
                raise AssertionError(work)
    except aiormq.exceptions.ChannelAccessRefused:
        return "refused"
    else:
        return "done"
    finally:
        await connection.close()


async def test_a_user_can_do_its_part_and_nothing_of_a_neighbours(applied: Users) -> None:
    rating, payment = applied.settings("rating"), applied.settings("payment")
    names = Names(rating.namespace)
    order, paid = names.exchange("ORDER_PLACED"), names.exchange("PAYMENT_COMPLETED")
    matrix = {
        (rating, "read", names.queue("rating")): "done",
        (rating, "read", names.queue("payment")): "refused",
        (rating, "read", names.dead("payment")): "refused",
        (rating, "read", names.retry("payment", 2)): "refused",
        (rating, "read", names.log("ORDER_PLACED")): "refused",
        (rating, "empty", names.queue("payment")): "refused",
        (rating, "delete", names.queue("rating")): "refused",
        (rating, "delete", names.queue("payment")): "refused",
        (rating, "bind", names.queue("rating")): "refused",
        (rating, "publish", order): "refused",
        (rating, "publish", paid): "refused",
        (payment, "read", names.queue("rating")): "refused",
        (payment, "publish", paid): "done",
        (payment, "publish", order): "refused",
        (applied.settings("producer"), "publish", order): "done",
        (applied.settings("producer"), "publish", paid): "refused",
        (applied.settings("producer"), "read", names.queue("payment")): "refused",
    }
    found = {
        (one.shown_url, work, name): await attempt(one, work, name) for one, work, name in matrix
    }
    assert found == {(one.shown_url, *rest): wanted for (one, *rest), wanted in matrix.items()}
    async with Publisher(settings=rating) as publisher:
        with pytest.raises(AccessRefused, match="refused to publish"):
            await publisher.publish("ORDER_PLACED", {"orderId": "1"})
    # What docs/security.md says of the default exchange: whoever retries may write to any queue by
    # its name. A signature is what helps against it.
    connection = await aiormq.connect(rating.broker_url)
    channel = await connection.channel()
    confirmed = await channel.basic_publish(
        b"{}", exchange="", routing_key=names.queue("payment"), mandatory=True
    )
    assert isinstance(confirmed, Basic.Ack)
    await connection.close()


@contextlib.contextmanager
def services(users: Users, directory: Path) -> Iterator[dict[str, Worker]]:
    """Each service as a process of its own user, as units run them."""
    with contextlib.ExitStack() as running:
        workers = {}
        for name in SERVICES:
            place = directory / name
            place.mkdir()
            worker = running.enter_context(Worker(users.settings(name), place))
            worker.start(
                "--no-declare",
                "--single-process",  # a third of the processes; the runtime is the same
                modules=(f"workers.{name}",),
                RABBITFLOW_DEMO_DB=str(directory / "effects.db"),
            )
            workers[name] = worker
        yield workers


async def test_every_service_works_with_its_own_user(
    applied: Users, probe: Probe, tmp_path: Path
) -> None:
    with services(applied, tmp_path) as workers:
        for name, worker in workers.items():
            await worker.ready(name)
        tap = probe.tap("PAYMENT_COMPLETED")
        async with Publisher(settings=applied.settings("producer")) as publisher:
            order = Event[Any].model_validate_json((EXAMPLES / "order.json").read_bytes())
            await publisher.publish(order)
            ride = json.loads((EXAMPLES / "ride.json").read_bytes())
            await publisher.publish("RIDE_COMPLETED", ride)
            # A declined card and, for the others, data that fits nobody: a dead letter for each.
            broken = {"orderId": "ORD-1", "userId": "USR-1", "amount": 100_001, "items": "?"}
            await publisher.publish("ORDER_PLACED", broken)
            await publisher.publish("RIDE_COMPLETED", {})
        await eventually(lambda: probe.depth(tap) == 2, within_s=30)
        for name in SERVICES:
            dead = probe.names.dead(name)
            await eventually(lambda dead=dead: probe.depth(dead) >= 1, within_s=30, what=dead)
            assert probe.depth(probe.names.queue(name)) == 0
        # What operators do, with theirs.
        operator = Command(applied.settings("operator"), tmp_path)
        assert operator("dlq", "list", "payment", "--json").returncode == 0
        assert operator("pause", "rating").returncode == 0
        assert operator("resume", "rating").returncode == 0
        refused = Command(applied.settings("rating"), tmp_path)("dlq", "list", "payment")
        assert refused.returncode == 1
        assert "refused" in refused.stderr
        for worker in workers.values():
            worker.signal()
        codes = await asyncio.gather(
            *(asyncio.to_thread(worker.exit_code) for worker in workers.values())
        )
        assert set(codes) == {0}
