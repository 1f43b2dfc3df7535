"""Settings: what is wrong is refused when it is read, with the setting's name, the problem and the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.errors import SettingsError
from headrace.settings import Settings, load


def read(**settings: str) -> Settings:
    return load({f"HEADRACE_{name.upper()}": value for name, value in settings.items()}, ())


def refused(**settings: str) -> str:
    with pytest.raises(SettingsError) as caught:
        read(**settings)
    return caught.value.detail


@pytest.mark.parametrize("url", ["redis://localhost:6379/1", "rediss://:secret@cache", "unix:///run/redis.sock"])
def test_schemes_of_redis(url: str) -> None:
    assert read(redis_url=url).redis_url == url


@pytest.mark.parametrize("url", ["http://cache:6379", "cache:6379", "redis:cache", "://cache"])
def test_other_schemes_are_not_redis(url: str) -> None:
    told = refused(redis_url=url)
    assert told.startswith("HEADRACE_REDIS_URL: ")
    assert "redis, rediss, unix" in told
    assert "write it as redis://" in told


def test_control_url_is_http() -> None:
    assert read(control_url="HTTPS://control.example/").control == "https://control.example"
    assert read(control_url="http://[::1]:7700").control == "http://[::1]:7700"


@pytest.mark.parametrize("url", ["ftp://control", "control:7700", "http://", "http://host:port", "http://[::1"])
def test_what_is_no_control_url(url: str) -> None:
    told = refused(control_url=url)
    assert told.startswith("HEADRACE_CONTROL_URL: ")
    assert "write it as http://host:port" in told


def test_secrets_in_urls_are_not_shown() -> None:
    for name in ("redis_url", "control_url", "database_url"):
        assert "s3cret" not in refused(**{name: "gopher://user:s3cret@host"})
    assert "s3cret" not in refused(database_url="postgresql://user:s3cret@host/db?oops=1")


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"])
def test_sslmode_becomes_the_drivers_ssl(mode: str) -> None:
    settings = read(database_url=f"postgres://u:p%40?w@db.example:5432/headrace?sslmode={mode}&host=%2Frun%2Fpg")
    assert settings.database == (f"postgresql+asyncpg://u:p%40?w@db.example:5432/headrace?ssl={mode}&host=%2Frun%2Fpg")
    assert load(settings.environment(), ()).database == settings.database, "child processes read the same"


def test_unknown_options_of_the_database_are_named() -> None:
    told = refused(database_url="postgresql://db/headrace?sslmode=require&aplication_name=x")
    assert told.startswith("HEADRACE_DATABASE_URL: ")
    assert "'aplication_name' is not known: remove it" in told
    assert "sslmode=yes is not known: use one of disable" in refused(database_url="postgresql://db/x?sslmode=yes")
    assert "SQLite takes no options" in refused(database_url="sqlite:////tmp/x.db?host=a")
    assert "names no file" in refused(database_url="sqlite://")


@pytest.mark.parametrize("name", ["fn.example.org", "localhost", "a-b.c1"])
def test_base_domains(name: str) -> None:
    assert read(base_domain=name.upper()).base_domain == name


@pytest.mark.parametrize(
    "name", [".example.org", "example.org.", "http://x", "x:80", "a_b.org", "-a.org", "a b", "x\n", "a" * 64, "a." * 99]
)
def test_what_is_no_base_domain(name: str) -> None:
    told = refused(base_domain=name)
    assert told.startswith("HEADRACE_BASE_DOMAIN: this is no host name: write one such as")


def test_the_ca_bundle_is_a_file(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.touch()
    assert read(build_ca_bundle=str(bundle)).build_ca_bundle == str(bundle)
    for path in (tmp_path / "none.pem", tmp_path, bundle / "below", tmp_path / ("x" * 300)):
        told = refused(build_ca_bundle=str(path))
        assert told.startswith(f"HEADRACE_BUILD_CA_BUNDLE: there is no file {path}: name a file")


def test_the_two_ports_differ() -> None:
    told = refused(port="7700", token="s3cret")
    assert told == "HEADRACE_PORT and HEADRACE_CONTROL_PORT are both 7700: give each a port of its own."
    assert read(port="7700", control_port="7780").control_port == 7780


def test_every_problem_is_told_at_once() -> None:
    told = refused(redis_url="x", base_domain="-", ports="1").splitlines()
    assert len(told) == 3
    assert told[0].startswith("HEADRACE_PORTS is not a setting")
