"""What runs in the booted machine: the modules of a shop, and who publishes to it.

Each handler writes ``begun`` and ``done`` with event, key and number, by one write each, into the
directory that its unit was granted; ``cut`` where it was cancelled.
"""

HANDLES = """
import asyncio, os
from pathlib import Path
from rabbitflow import Consumer, Event

def note(what, event):
    said = what, event.id, event.data["key"], event.data["number"]
    with (Path(os.environ["STATE_DIRECTORY"]) / "effects").open("a") as effects:
        effects.write(" ".join(map(str, said)) + "\\n")

{name} = Consumer("{name}", {options}, timeout={timeout})

@{name}.on("ORDER_PLACED")
async def react(event: Event[dict]) -> None:
    note("begun", event)
    try:
        await asyncio.sleep({takes_s})
    except asyncio.CancelledError:
        note("cut", event)
        raise
    note("done", event)
"""

PUBLISHES = """
import asyncio, sys, time
from pathlib import Path
from rabbitflow import Event, Publisher

async def main(count, rate, path):
    async with Publisher() as publisher:
        ids = []
        started = time.monotonic()
        for number in range(count):
            await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))
            event = Event(
                type="ORDER_PLACED", data={"key": f"k{number % 20}", "number": number}
            )
            await publisher.publish(event)
            ids.append(event.id)
        print(f"{count / (time.monotonic() - started):.0f}/s")
    Path(path).write_text("\\n".join(ids))

asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]))
"""

ORDERS = """
import sys
from rabbitflow.store import outbox
from rabbitflow.store.database import Database

database = Database.parse(sys.argv[1]).sync_engine()
with database.begin() as transaction:
    for number in range(int(sys.argv[2])):
        outbox.add_sync(transaction, "ORDER_PLACED", {"key": "k0", "number": number})
"""
