"""Each thing that can be wrong is found, with its severity and what to do; what is right is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rabbitflow.declaration import Mismatch
from rabbitflow.doctor.checks import Finding, Severity, findings
from rabbitflow.doctor.facts import (
    BrokerFacts,
    ConsumerFacts,
    Facts,
    FileHandles,
    ManagementFacts,
    Probe,
)
from rabbitflow.inspection import Difference
from rabbitflow.status import ConsumerStatus
from rabbitflow.topology import Queue
from rabbitflow.worker.discovery import Broken, Found

FOUND = Found("payment", "workers.payment", ("ORDER_PLACED",), 4, (2,), 20.0, prefetch=6)
STATUS = ConsumerStatus("payment", 0, {}, 0, 1, 1, is_paused=False, is_migrating=False)
CONSUMER = ConsumerFacts(FOUND, STATUS, delivery_limit=50)
BROKER = BrokerFacts("RabbitMQ", "4.1.0", "localhost", "guest", False, True)
BOUND = ManagementFacts(frozenset({("events.ORDER_PLACED", "payment")}), {"payment": 0})
FACTS = Facts(BROKER, (CONSUMER,), (), 30.0, 1_048_576, "quorum", True, True, None, BOUND)


def of_broker(**changes: Any) -> list[Finding]:
    return findings(replace(FACTS, broker=replace(BROKER, **changes)))


def of_consumer(**changes: Any) -> list[Finding]:
    return findings(replace(FACTS, consumers=(replace(CONSUMER, **changes),)))


def of_status(**changes: Any) -> list[Finding]:
    return of_consumer(status=replace(STATUS, **changes))


def of_module(**changes: Any) -> list[Finding]:
    return of_consumer(found=replace(FOUND, **changes))


def the_one(found: list[Finding], severity: Severity, *words: str) -> Finding:
    assert len(found) == 1, found
    assert found[0].severity is severity
    for word in words:
        assert word in f"{found[0].problem} | {found[0].advice}"
    return found[0]


def test_where_all_is_well_nothing_is_found() -> None:
    assert findings(FACTS) == []


@pytest.mark.parametrize(
    ("version", "severity", "words"),
    [
        ("3.10.8", Severity.WARNING, "gets no fixes"),
        ("3.12.14", Severity.WARNING, "gets no fixes"),
        ("3.9.29", Severity.ERROR, "at most once"),
    ],
)
def test_what_a_version_lacks_is_said(version: str, severity: Severity, words: str) -> None:
    the_one(of_broker(version=version), severity, words)


def test_an_old_broker_without_quorum_queues_and_streams_has_two_errors() -> None:
    found = of_broker(version="3.7.28")
    assert [finding.severity for finding in found] == [Severity.ERROR] * 2
    assert "quorum" in found[0].problem
    assert "streams" in found[1].problem


@pytest.mark.parametrize("version", ["3.13.7", "4.0.1", "4.2.0-rc.1"])
def test_a_current_version_is_fine(version: str) -> None:
    assert of_broker(version=version) == []


def test_another_broker_is_noted() -> None:
    the_one(of_broker(product="rabbitflow"), Severity.NOTE, "not RabbitMQ")


def test_guest_from_another_host_is_an_error_and_no_tls_a_warning() -> None:
    found = of_broker(host="mq.example.org")
    assert [finding.severity for finding in found] == [Severity.ERROR, Severity.WARNING]
    assert "guest" in found[0].problem
    assert "amqps://" in found[1].advice


def test_a_certificate_that_is_not_verified_is_a_warning() -> None:
    found = of_broker(host="mq.example.org", user="shop", is_encrypted=True, is_verified=False)
    the_one(found, Severity.WARNING, "not verified", "cafile")


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        (Probe.TOO_LARGE, "max_message_size"),
        (Probe.REFUSED, "amq.default"),
        (Probe.UNANSWERED, "alarm"),
    ],
)
def test_what_hinders_publishing_is_an_error(probe: Probe, words: str) -> None:
    the_one(of_broker(probe=probe, probe_said="so"), Severity.ERROR, words)


def test_a_module_that_can_not_be_imported_is_an_error() -> None:
    broken = (Broken("workers.email", "ImportError: no mail"),)
    the_one(findings(replace(FACTS, broken=broken)), Severity.ERROR, "no mail")


def test_missing_queues_are_an_error_that_names_them() -> None:
    found = of_consumer(difference=Difference(missing=(Queue("payment.dead"),)))
    the_one(found, Severity.ERROR, "queue payment.dead", "topology apply workers.payment")


def test_an_argument_that_differs_is_an_error_with_the_command_to_migrate() -> None:
    mismatch = Mismatch("queue", "payment", "x-overflow", "reject-publish", "none")
    found = of_consumer(difference=Difference(mismatches=(mismatch,)))
    the_one(found, Severity.ERROR, "x-overflow", "topology migrate payment workers.payment")


def test_events_that_wait_for_nobody_are_an_error_and_an_idle_consumer_a_warning() -> None:
    nobody = {"consuming": 0, "workers": 0}
    the_one(of_status(ready=7, **nobody), Severity.ERROR, "7 events wait", "rabbitflow worker")
    the_one(of_status(**nobody), Severity.WARNING, "no process")


def test_processes_that_the_broker_has_forgotten_are_found() -> None:
    found = of_status(ready=7, consuming=0)
    the_one(found, Severity.ERROR, "hands them nothing", "breaker")


def test_strangers_that_take_events_away_are_found() -> None:
    the_one(of_status(consuming=3), Severity.WARNING, "somebody else")


def test_a_pause_and_an_interrupted_migration_are_warnings() -> None:
    the_one(of_status(is_paused=True), Severity.WARNING, "rabbitflow resume payment")
    the_one(of_status(is_migrating=True), Severity.WARNING, "topology migrate payment")


def test_dead_letters_are_a_warning() -> None:
    the_one(of_status(dead=1200), Severity.WARNING, "1,200 dead letters", "dlq list payment")


def test_time_outs_that_beat_each_other_are_found() -> None:
    the_one(of_module(longest_timeout_s=None), Severity.WARNING, "no time-out")
    the_one(of_module(longest_timeout_s=900.0), Severity.ERROR, "1800 s", "consumer_timeout")
    the_one(of_module(longest_timeout_s=31.0), Severity.NOTE, "SHUTDOWN_TIMEOUT")


def test_a_delivery_limit_that_convicts_neighbours_is_an_error() -> None:
    the_one(of_consumer(delivery_limit=3), Severity.ERROR, "neighbours")
    the_one(of_consumer(delivery_limit=-1), Severity.ERROR, "drops an event")


def test_retries_without_an_end_are_noted() -> None:
    the_one(of_module(retries_for_ever=True), Severity.NOTE, "does not end")


def test_refusals_are_errors_in_the_brokers_words() -> None:
    the_one(of_consumer(refusals=("may not read payment",)), Severity.ERROR, "may not read payment")


def test_without_the_management_api_it_is_said_what_was_not_looked_at() -> None:
    without = replace(FACTS, management=None)
    the_one(findings(without), Severity.NOTE, "bindings", "RABBITFLOW_MANAGEMENT_URL")
    unread = replace(without, unread="it answers 401")
    the_one(findings(unread), Severity.NOTE, "it answers 401")


def test_a_missing_binding_is_an_error_and_one_too_many_a_warning() -> None:
    unbound = replace(FACTS, management=replace(BOUND, bindings=frozenset()))
    the_one(findings(unbound), Severity.ERROR, "pass it by")
    more = replace(BOUND, bindings=BOUND.bindings | {("events.REFUND_ASKED", "payment")})
    the_one(findings(replace(FACTS, management=more)), Severity.WARNING, "no handler names")


def test_a_queue_that_fills_for_nobody_is_found_and_a_log_is_none() -> None:
    bound = {("events.ORDER_PLACED", "billing"), ("events.ORDER_PLACED", "events.ORDER_PLACED.log")}
    orphan = ManagementFacts(BOUND.bindings | bound, {"billing": 4000})
    the_one(findings(replace(FACTS, management=orphan)), Severity.WARNING, "4,000 messages")


@pytest.mark.parametrize(
    ("version", "reserved", "is_told"),
    [("3.13.7", 800, True), ("3.13.7", 500, False), ("4.1.0", 800, False)],
)
def test_a_node_of_3_x_that_runs_out_of_file_handles_is_told(
    version: str, reserved: int, is_told: bool
) -> None:
    crowded = replace(BOUND, handles=(FileHandles("rabbit@a", reserved, 1024),))
    found = findings(replace(FACTS, broker=replace(BROKER, version=version), management=crowded))
    assert [one.severity for one in found] == [Severity.WARNING] * is_told
    assert all("800 of 1,024" in one.problem and "LimitNOFILE" in one.advice for one in found)


def test_an_alarm_is_an_error_and_errors_come_first() -> None:
    alarmed = replace(FACTS, management=replace(BOUND, alarms=("rabbit@a: disk",)))
    found = findings(
        replace(alarmed, consumers=(replace(CONSUMER, status=replace(STATUS, dead=1)),))
    )
    assert [finding.severity for finding in found] == [Severity.ERROR, Severity.WARNING]
    assert "disk" in found[0].problem
