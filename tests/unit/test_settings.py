"""Settings come from the environment, a credential file or an option; secrets stay secret."""

from __future__ import annotations

import traceback
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rabbitflow import ConfigurationError
from rabbitflow.durations import seconds
from rabbitflow.settings import Settings, load_settings, redact
from rabbitflow.worker.plan import Terms


def test_the_environment_is_read_and_options_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RABBITFLOW_URL", "amqp://env/")
    monkeypatch.setenv("RABBITFLOW_NAMESPACE", "shop")
    assert load_settings().broker_url == "amqp://env/"
    assert load_settings(url="amqp://option/", namespace=None).broker_url == "amqp://option/"
    assert load_settings().namespace == "shop"


def test_a_credential_file_wins_over_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "url").write_text("amqp://file/\n")
    monkeypatch.setenv("RABBITFLOW_URL", "amqp://env/")
    monkeypatch.setenv("RABBITFLOW_URL_FILE", str(tmp_path / "url"))
    assert load_settings().broker_url == "amqp://file/"
    assert load_settings(url="amqp://option/").broker_url == "amqp://option/"


def test_credentials_that_were_rotated_are_read_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "url").write_text("amqp://me:old@host/")
    monkeypatch.setenv("RABBITFLOW_URL_FILE", str(tmp_path / "url"))
    terms, by_option = (Terms.of(load_settings(url=url)) for url in (None, "amqp://option/"))
    (tmp_path / "url").write_text("amqp://me:new@host/")
    assert terms.renewed().order["url"] == "amqp://me:new@host/"
    assert by_option.renewed().order["url"] == "amqp://option/"


def test_a_credential_file_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RABBITFLOW_URL_FILE", "nowhere/url")
    with pytest.raises(ConfigurationError, match="can't be read from a file"):
        load_settings()


@pytest.mark.parametrize(
    "url", ["amqp://me:s3cret@host/vhost", "amqps://me:s3cret%40%2F@host:5671/?x=s3cret"]
)
def test_a_password_is_never_shown(url: str) -> None:
    settings = load_settings(url=url)
    for shown in (repr(settings), str(settings), settings.shown_url, str(settings.model_dump())):
        assert "s3cret" not in shown
    assert settings.as_order()["url"] == url
    assert "me@host" in redact(url)


BROKEN_URLS = [
    "http://me:s3cret@host/",
    "amqp://",
    "s3cret",
    "amqp://me:s3cret@host:port/",
    "amqp://me:s3cret@host:99999/",
    # A password with a bare / ? or # in it: what stands before looks like a host and its port.
    "amqp://me:12/s3cret@host/",
    "amqp://me:12?s3cret@host/",
    "amqp://me:12#s3cret@host/",
    "amqp://me:p/s3cret@host/",
]


@pytest.mark.parametrize("url", BROKEN_URLS)
def test_a_url_that_is_none_is_refused_without_being_repeated(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match="not a broker's URL") as refused:
        load_settings(url=url)
    with pytest.raises(ValidationError) as directly:
        Settings.model_validate({"url": url})
    (tmp_path / "url").write_text(url)
    monkeypatch.setenv("RABBITFLOW_URL_FILE", str(tmp_path / "url"))
    with pytest.raises(ConfigurationError) as from_file:
        load_settings()
    for error in (refused, directly, from_file):
        assert "s3cret" not in "".join(traceback.format_exception(error.value))


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zs"]), min_size=1))
def test_no_password_however_odd_is_shown(password: str) -> None:
    url = f"amqp://me:{quote('s3cret' + password, safe='')}@host/a%40b"
    settings = load_settings(url=url)
    assert settings.shown_url == "amqp://me@host/a@b"
    assert "s3cret" not in repr(settings) + str(settings) + settings.model_dump_json()


def test_a_cluster_has_a_url_for_each_node_and_shows_no_password_of_any() -> None:
    settings = load_settings(url="amqp://me:s3cret@one/\n amqps://me:s3cret@two:5671/shop\n")
    assert settings.broker_urls == ("amqp://me:s3cret@one/", "amqps://me:s3cret@two:5671/shop")
    assert settings.shown_url == "amqp://me@one/, amqps://me@two:5671/shop"
    with pytest.raises(ConfigurationError, match="not a broker's URL"):
        load_settings(url="amqp://one/ two:5672")


def test_a_namespace_that_every_event_begins_with_is_refused() -> None:
    assert load_settings(namespace="").namespace is None
    with pytest.raises(ConfigurationError, match="it is no namespace"):
        load_settings(namespace="events")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("namespace", "shop.eu"),
        ("namespace", "1"),
        ("queue_type", "mirrored"),
        ("event_log_max_age", "seven days"),
        ("publish_timeout_s", 0),
        ("max_body_bytes", -1),
        ("metrics_port", 65536),
    ],
)
def test_a_setting_that_does_not_fit_is_named(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=f"a setting does not fit: {name}: "):
        load_settings(**{name: value})


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (5, 5), (0.5, 0.5), ("500ms", 0.5), ("30s", 30), ("5m", 300), ("2h", 7200), ("1d", 86400),
        ("1h30m", 5400), (timedelta(minutes=2), 120), (" 5 m ", 300),
    ],
)  # fmt: skip
def test_durations_are_read_as_people_write_them(written: float | str, meant: float) -> None:
    assert seconds(written) == meant


@pytest.mark.parametrize("written", ["", "5", "five", "5 weeks", -1, "-5s", float("inf")])
def test_what_is_no_duration_is_refused(written: float | str) -> None:
    with pytest.raises(ValueError, match="duration"):
        seconds(written)
