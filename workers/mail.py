"""Sending mail: over SMTP where SMTP_URL is set, into the outbox table otherwise."""

from __future__ import annotations

import asyncio
import os
from email.message import EmailMessage
from typing import Any
from urllib.parse import unquote, urlsplit

from rabbitflow import Context, Event
from workers import ledger

SENDER = "shop@example.com"


async def send(
    event: Event[Any], context: Context, recipient: str, subject: str, body: str
) -> None:
    """Send one mail about ``event``.

    SMTP has no transaction: a process that dies between the mail and the note of it sends it a
    second time. The message id is the event's, so that a mailbox can tell.
    """
    smtp_url = os.environ.get("SMTP_URL")
    if smtp_url:
        if await asyncio.to_thread(_is_sent, event, context):
            return
        await _send_by_smtp(smtp_url, event, context, recipient, subject, body)
    outbox = None if smtp_url else (recipient, subject, body)
    what = f"mailed {recipient}: {subject}"
    await asyncio.to_thread(_note, event, context, what, outbox)


def _note(
    event: Event[Any], context: Context, what: str, outbox: tuple[str, str, str] | None
) -> None:
    with ledger.transaction() as connection:
        if ledger.record(connection, event, context, what) and outbox is not None:
            key = f"{context.consumer}/{event.id}"
            connection.execute("INSERT INTO outbox VALUES (?, ?, ?, ?)", (key, *outbox))


def _is_sent(event: Event[Any], context: Context) -> bool:
    with ledger.transaction() as connection:
        row = connection.execute(
            "SELECT 1 FROM effects WHERE consumer = ? AND event_id = ?",
            (context.consumer, event.id),
        ).fetchone()
    return row is not None


async def _send_by_smtp(
    url: str, event: Event[Any], context: Context, recipient: str, subject: str, body: str
) -> None:
    import aiosmtplib  # noqa: PLC0415 - extra "mail"

    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = SENDER, recipient, subject
    message["Message-ID"] = f"<{event.id}.{context.consumer}@example.com>"
    message.set_content(body)
    server = urlsplit(url)
    await aiosmtplib.send(
        message,
        hostname=server.hostname,
        port=server.port,
        username=unquote(server.username) if server.username else None,
        password=unquote(server.password) if server.password else None,
        use_tls=server.scheme == "smtps",
    )
