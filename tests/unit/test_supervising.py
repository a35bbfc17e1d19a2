"""The process that supervises stays small, and is told what it has to know without showing it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

from rabbitflow import ConfigurationError
from rabbitflow.observe.server import StatusServer
from rabbitflow.settings import load_settings
from rabbitflow.worker.plan import Terms

URL = "amqp://me:s3cret@host/shop"

NOT_OURS = """
import sys
import rabbitflow.worker.__main__
print(*sorted({name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names))
"""


def printed(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


def test_the_supervisor_imports_the_standard_library_and_itself() -> None:
    # Of a virtual environment's own: what its start-up file imports into every process.
    every_process = printed("import sys; print(*{name.partition('.')[0] for name in sys.modules})")
    assert printed(NOT_OURS) - every_process == {"rabbitflow"}


@pytest.mark.parametrize(
    "module", ["ssl", "wsgiref", "http", "pydantic", "click", "aio_pika", "prometheus_client"]
)
def test_what_takes_memory_is_not_in_a_supervisor_that_nobody_asks(module: str) -> None:
    held = printed("import sys, rabbitflow.worker.__main__; print(*sys.modules)")
    assert "asyncio" in held
    assert module not in held


def test_openssl_can_be_had_by_who_comes_later() -> None:
    assert printed("import rabbitflow.worker.__main__, ssl; print(ssl.create_default_context())")


def test_the_terms_go_to_the_supervisor_whole_and_show_no_password(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "url").write_text(URL)
    monkeypatch.setenv("RABBITFLOW_URL_FILE", str(tmp_path / "url"))
    terms = Terms.of(load_settings(metrics_port=9000, namespace="eu"))
    told = json.loads(json.dumps(terms.as_json()))
    assert Terms.from_json(told) == terms
    assert terms.order["url"] == URL
    assert (terms.metrics_port, terms.is_port_asked, terms.namespace) == (9000, True, "eu")
    assert not Terms.of(load_settings()).is_port_asked
    assert "s3cret" not in repr(terms) + str(terms)


@pytest.mark.parametrize("held", [None, "", "http://me:s3cret@host/", "amqp://me:12/s3cret@host/"])
def test_a_file_that_holds_no_url_any_more_is_refused_without_being_repeated(
    held: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "url"
    file.write_text(URL)
    monkeypatch.setenv("RABBITFLOW_URL_FILE", str(file))
    terms = Terms.of(load_settings())
    if held is None:
        file.unlink()
    else:
        file.write_text(held)
    with pytest.raises(ConfigurationError) as refused:
        terms.renewed()
    assert "s3cret" not in str(refused.value)
    assert terms.order["url"] == URL


def test_the_status_server_answers_whoever_asks_first_and_closes_before_anybody_does() -> None:
    asked_for: list[str] = []

    def metrics() -> object:
        asked_for.append("metrics")
        return lambda environ, start_response: (start_response("200 OK", []), [b"figures"])[1]

    StatusServer("127.0.0.1", 0, metrics, lambda: {"ready": True}).close()
    server = StatusServer("127.0.0.1", 0, metrics, lambda: {"ready": True})
    try:
        with pytest.raises(ConfigurationError, match="can't be served on"):
            StatusServer("127.0.0.1", server.port, metrics, lambda: {"ready": True})
        with urlopen(f"http://127.0.0.1:{server.port}/healthz", timeout=10) as answer:
            assert json.loads(answer.read()) == {"alive": True}
        assert not asked_for
        for _ in range(2):
            with urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
                assert answer.read() == b"figures"
        assert asked_for == ["metrics"]
    finally:
        server.close()
