"""Time that a test moves: nothing expires by itself, and everything in its order."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabbitflow.devbroker import DevBroker, LoopClock, VirtualClock
from tests.harness.amqp import Client, headers_of


def test_callbacks_happen_in_the_order_of_their_times_each_at_its_own() -> None:
    clock, seen = VirtualClock(now=100.0), []
    for when in (103.0, 101.0, 102.0, 150.0):
        clock.call_at(when, lambda: seen.append(clock.now()))
    clock.advance(10)
    assert seen == [101.0, 102.0, 103.0]
    assert clock.now() == 110.0
    assert clock.next_due == 150.0


def test_what_a_callback_asks_for_happens_within_the_same_span() -> None:
    clock, seen = VirtualClock(now=0.0), []

    def again() -> None:
        seen.append(clock.now())
        clock.call_at(clock.now() + 1, again)

    clock.call_at(1.0, again)
    clock.advance(3.5)
    assert seen == [1.0, 2.0, 3.0]


def test_a_cancelled_callback_does_not_happen() -> None:
    clock, seen = VirtualClock(now=0.0), []
    clock.call_at(1.0, lambda: seen.append("kept"))
    clock.call_at(0.5, lambda: seen.append("cancelled")).cancel()
    assert clock.next_due == 1.0
    clock.advance(2)
    assert seen == ["kept"]
    assert clock.next_due is None


def test_time_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="does not go back"):
        VirtualClock().advance(-1)


@given(st.lists(st.floats(0, 1000), max_size=30), st.lists(st.floats(0, 100), max_size=10))
def test_many_steps_do_the_same_as_one(times: list[float], steps: list[float]) -> None:
    def run(*spans: float) -> list[float]:
        clock, seen = VirtualClock(now=0.0), []
        for when in times:
            clock.call_at(when, lambda when=when: seen.append(when))  # type: ignore[misc]
        for span in spans:
            clock.advance(span)
        return seen

    assert sorted(run(1001.0)) == run(1001.0)
    stepwise = run(*steps)
    assert stepwise == [when for when in sorted(times) if when <= sum(steps)][: len(stepwise)]


async def test_the_loops_clock_calls_in_time() -> None:
    clock, called = LoopClock(), asyncio.Event()
    clock.call_at(clock.now() + 0.01, called.set)
    async with asyncio.timeout(5):
        await called.wait()


async def test_five_minutes_pass_in_no_time(client: Client, clock: VirtualClock) -> None:
    queue = await client.queue()
    retry = await client.queue(
        "retry", "quorum", x_dead_letter_exchange="", x_dead_letter_routing_key=queue
    )
    await client.publish(retry, b"x", expiration="300000")
    clock.advance(299.9)
    assert await client.get(queue) is None
    clock.advance(0.1)
    message = await client.next(queue, no_ack=True)
    assert headers_of(message)["x-death"][0]["time"].timestamp() == int(clock.now())


async def test_an_advance_goes_through_every_retry_on_its_way(
    client: Client, broker: DevBroker, clock: VirtualClock
) -> None:
    names = [client.name(f"stage{number}") for number in range(4)]
    for name, further in zip(names, [*names[1:], ""], strict=True):
        ttl = {} if not further else {"x_message_ttl": 60_000}
        await client.declare(
            name, x_dead_letter_exchange="", x_dead_letter_routing_key=further or "nowhere", **ttl
        )
    await client.publish(names[0], b"x")
    began = clock.now()
    clock.advance(180)
    (message,) = broker.messages(names[3])
    times = [death["time"].timestamp() for death in message.properties.headers["x-death"]]
    assert times == [int(began + passed) for passed in (180, 120, 60)]


async def test_streams_forget_by_the_clock(client: Client, clock: VirtualClock) -> None:
    stream = await client.queue("stream", "stream", x_max_age="1h")
    await client.publish(stream, b"old")
    clock.advance(3601)
    await client.publish(stream, b"new")
    inbox = await client.consume(stream, prefetch=5, arguments={"x-stream-offset": "first"})
    (message,) = await inbox.has(1)
    assert (message.body, headers_of(message)["x-stream-offset"]) == (b"new", 1)


async def test_time_that_passes_for_messages_does_not_end_connections(
    client: Client, clock: VirtualClock
) -> None:
    clock.advance(86_400)
    assert await client.depth(await client.queue()) == 0


async def test_peers_are_given_up_by_the_clock_of_heartbeats() -> None:
    clock = VirtualClock()
    async with DevBroker(heartbeat_clock=clock) as broker:
        reader, writer = await asyncio.open_connection(broker.host, broker.port)
        await broker.until(lambda: broker.connections == 1)
        # It has not even said which protocol it speaks.
        clock.advance(11)
        assert await reader.read() == b""
        await broker.until(lambda: broker.connections == 0)
        writer.close()
