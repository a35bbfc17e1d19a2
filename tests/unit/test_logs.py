"""Log lines say which event they are about, whoever writes them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from rabbitflow import Context, Event
from rabbitflow.observe.logs import being_handled, configure_logging


class _Nobody:
    async def publish(self, event: Any, data: Any = None, **fields: Any) -> Event[Any]:
        raise AssertionError("nothing is announced here")


@pytest.fixture
def context() -> Context:
    event = Event[Any](id="e-1", type="ORDER_PLACED", data={}, correlation_id="c-1")
    return Context(event, "payment", _Nobody(), attempt=2)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_record_of_the_users_own_logger_names_the_event_as_json(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("json")
    being_handled.set(context)
    logging.getLogger("shop.cards").warning("declined by %s", "the bank")
    being_handled.set(None)
    logging.getLogger("shop.cards").info("idle")
    declined, idle = map(json.loads, capsys.readouterr().err.splitlines())
    assert declined.pop("time").endswith("+00:00")
    assert declined == {
        "level": "warning",
        "logger": "shop.cards",
        "message": "declined by the bank",
        "consumer": "payment",
        "event_id": "e-1",
        "event_type": "ORDER_PLACED",
        "attempt": 2,
        "correlation_id": "c-1",
    }
    assert set(idle) == {"time", "level", "logger", "message"}


def test_a_plain_line_ends_with_the_event(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("text")
    context.log.info("charging")
    expected = (
        " INFO    charging consumer=payment event_id=e-1 event_type=ORDER_PLACED attempt=2"
        " correlation_id=c-1\n"
    )
    assert capsys.readouterr().err.endswith(expected)


def test_a_line_that_names_its_event_does_not_name_it_twice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("text")
    logging.getLogger("x").error("dead-lettered e-1", extra={"event_id": "e-1", "reason": "no"})
    assert capsys.readouterr().err.endswith(" ERROR   dead-lettered e-1\n")


async def test_a_thread_of_the_handler_logs_the_same_event(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("json")
    being_handled.set(context)
    await asyncio.to_thread(logging.getLogger("shop").info, "in a thread")
    assert json.loads(capsys.readouterr().err)["event_id"] == "e-1"


def test_an_event_without_a_correlation_id_is_found_by_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("json")
    event = Event[Any](id="e-2", type="ORDER_PLACED", data={})
    Context(event, "payment", _Nobody()).log.info("first of its chain")
    assert json.loads(capsys.readouterr().err)["correlation_id"] == "e-2"
