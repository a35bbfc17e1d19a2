"""``rabbitflow broker``: an AMQP broker for development, in memory."""

from __future__ import annotations

import ipaddress

import click

from rabbitflow.cli.options import errors_in_one_line, run
from rabbitflow.devbroker import DevBroker
from rabbitflow.devbroker.standalone import serve


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=5672, show_default=True, help="0 for any."
)
@errors_in_one_line
def broker(host: str, port: int) -> None:
    """Run an AMQP 0-9-1 broker for development and tests.

    It does what rabbitflow needs of RabbitMQ, keeps everything in memory, and loses it when it
    stops. User and password are guest.
    """
    run(serve(host, port, _announce))


def _announce(broker: DevBroker) -> None:
    click.echo(
        f"rabbitflow broker on {broker.host} port {broker.port}: keeps nothing on disk,"
        " for development and tests, not for production"
    )
    if not _is_loopback(broker.host):
        click.echo(
            f"warning: whoever reaches {broker.host} can read and write everything in it", err=True
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
