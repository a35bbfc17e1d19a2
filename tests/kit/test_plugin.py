"""The fixtures, in a project of their own, as a user has them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CONFTEST = """
import pytest
from shop import payment
pytest_plugins = ["rabbitflow.testing.plugin"]

@pytest.fixture
def consumers():
    return [payment]
"""
SHOP = """
from rabbitflow import Consumer, Retry

payment = Consumer("payment", retry=Retry.fixed(attempts=3, wait="5m"))

@payment.on("ORDER_PLACED")
def charge(order: dict) -> None:
    order["amount"]
"""
TEST = """
async def test_an_order_is_paid(flow):
    await flow.publish("ORDER_PLACED", {"amount": 1500})
    await flow.settled()
    assert len(flow.handled("payment")) == 1

async def test_an_order_without_an_amount_is_given_up_after_ten_minutes(flow):
    await flow.publish("ORDER_PLACED", {})
    await flow.advance("9m")
    assert flow.dead_letters("payment") == []
    await flow.advance("1m")
    assert flow.dead_letters("payment")[0].exception_type == "KeyError"
"""


def test_a_users_project_tests_its_consumers_with_the_fixture(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "test_shop.py").write_text(TEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
