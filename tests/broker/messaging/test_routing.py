"""Where a published message goes."""

from __future__ import annotations

import pytest

from tests.harness.amqp import Client, headers_of


async def test_a_fanout_reaches_every_queue_once(client: Client, kind: str) -> None:
    exchange = await client.exchange("fanout")
    first, second = await client.queue("first", kind), await client.queue("second", kind)
    for queue, key in ((first, ""), (first, "again"), (second, "")):
        await client.bind(queue, exchange, key)
    await client.publish("any", b"event", exchange=exchange)
    for queue in (first, second):
        assert (await client.next(queue, no_ack=True)).body == b"event"
        assert await client.get(queue) is None


async def test_a_direct_exchange_takes_the_key_literally(client: Client) -> None:
    exchange = await client.exchange("direct")
    queue = await client.queue()
    await client.bind(queue, exchange, "a.*")
    await client.publish("a.b", b"other", exchange=exchange)
    await client.publish("a.*", b"same", exchange=exchange)
    assert await client.drain(queue, 1) == [b"same"]


TOPICS = [
    ("a.b", "a.b", True),
    ("a.*", "a.b", True),
    ("a.*", "a", False),
    ("a.*", "a.b.c", False),
    ("*", "a", True),
    ("*", "", False),
    ("#", "", True),
    ("#", "a.b.c", True),
    ("a.#", "a", True),
    ("a.#", "a.b.c", True),
    ("a.#.d", "a.d", True),
    ("a.#.d", "a.b.c.d", True),
    ("a.#.d", "a.b.c", False),
    ("#.b.#", "a.b.c", True),
    ("#.b.#", "a.c", False),
    ("*.*", "a..b", False),
    ("*.*.*", "a..b", True),
    ("a+b", "aab", False),
    ("", "", True),
    ("", "a", False),
]


async def test_a_topic_counts_words(client: Client) -> None:
    exchange = await client.exchange("topic")
    found = []
    for number, (pattern, key, _) in enumerate(TOPICS):
        queue = await client.queue(f"topic{number}")
        await client.bind(queue, exchange, pattern)
        await client.publish(key, b"x", exchange=exchange)
        message = await client.get(queue, no_ack=True)
        found.append((pattern, key, message is not None))
        await (await client.shared()).queue_unbind(queue, exchange, pattern)
    assert found == TOPICS


@pytest.mark.parametrize(
    ("how", "headers", "is_routed"),
    [
        ("all", {"a": 1, "b": "x"}, True),
        ("all", {"a": 1}, False),
        ("all", {"a": 1, "b": "y"}, False),
        ("any", {"a": 1}, True),
        ("any", {"a": 2, "b": "y"}, False),
        ("any", {}, False),
    ],
)
async def test_a_headers_exchange_compares_headers(
    client: Client, how: str, headers: dict[str, object], is_routed: bool
) -> None:
    exchange = await client.exchange("headers")
    queue = await client.queue()
    await client.bind(queue, exchange, arguments={"x-match": how, "a": 1, "b": "x"})
    await client.publish("", b"x", exchange=exchange, headers=headers)
    assert (await client.get(queue, no_ack=True) is not None) is is_routed


async def test_the_default_exchange_leads_to_the_queue_of_that_name(client: Client) -> None:
    queue = await client.queue()
    await client.publish(queue, b"x")
    message = await client.next(queue, no_ack=True)
    assert (message.exchange, message.routing_key) == ("", queue)


async def test_an_exchange_bound_to_another_passes_on(client: Client) -> None:
    outer, inner = await client.exchange("topic", "outer"), await client.exchange("fanout", "inner")
    queue = await client.queue()
    channel = await client.shared()
    await channel.exchange_bind(inner, outer, "a.#")
    await channel.exchange_bind(outer, inner)
    await client.bind(queue, inner)
    await client.publish("a.b", b"x", exchange=outer)
    assert await client.drain(queue, 1) == [b"x"]
    await channel.exchange_unbind(inner, outer, "a.#")
    await client.publish("a.b", b"y", exchange=outer)
    assert await client.depth(queue) == 0


async def test_what_cannot_be_routed_goes_to_the_alternate_exchange(client: Client) -> None:
    spare = await client.exchange("fanout", "spare")
    exchange = await client.exchange("direct", arguments={"alternate-exchange": spare})
    queue = await client.queue()
    await client.bind(queue, spare)
    await client.publish("nobody", b"x", exchange=exchange)
    assert await client.drain(queue, 1) == [b"x"]


async def test_senders_may_name_further_queues(client: Client) -> None:
    queues = [await client.queue(what) for what in ("to", "cc", "bcc")]
    await client.publish(queues[0], b"x", headers={"CC": [queues[1]], "BCC": [queues[2]]})
    for queue in queues:
        assert headers_of(await client.next(queue, no_ack=True)) == {"CC": [queues[1]]}


async def test_an_unbound_queue_gets_nothing_more(client: Client) -> None:
    exchange = await client.exchange("fanout")
    queue = await client.queue()
    await client.bind(queue, exchange)
    await client.publish("", b"before", exchange=exchange)
    await (await client.shared()).queue_unbind(queue, exchange)
    await client.publish("", b"after", exchange=exchange)
    assert await client.drain(queue, 1) == [b"before"]
    assert await client.get(queue) is None
