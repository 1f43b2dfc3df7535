"""The certificate: what cannot be served is said before a port is opened, with the file's name and what to do."""

from __future__ import annotations

import ssl
import subprocess
import time
from pathlib import Path

import pytest

from headrace import tls
from headrace.cli.client import http_client
from headrace.errors import SettingsError
from headrace.settings import Settings, load


def make(directory: Path, name: str, *options: str) -> tuple[str, str]:
    """A self-signed certificate and its key."""
    cert, key = str(directory / f"{name}.pem"), str(directory / f"{name}.key")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", f"/CN={name}", "-keyout", key, "-out", cert, *(options or ("-days", "30"))]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    names = "subjectAltName=DNS:fn.example,IP:10.0.0.5"
    return make(tmp_path_factory.mktemp("tls"), "good", "-days", "30", "-addext", names)


def refused(cert: str, key: str) -> str:
    with pytest.raises(SettingsError) as caught:
        tls.check(cert, key)
    return caught.value.detail


def test_a_good_one_is_told_with_its_names_and_end(pair: tuple[str, str]) -> None:
    found = tls.check(*pair)
    assert found.names == ("fn.example", "10.0.0.5")
    assert 29 * 86_400 < found.until - time.time() <= 30 * 86_400


def test_a_key_of_another_certificate(pair: tuple[str, str], tmp_path: Path) -> None:
    _, other = make(tmp_path, "other")
    assert refused(pair[0], other).startswith(f"HEADRACE_TLS_KEY: the key in {other} is not that of the certificate in")


def test_an_expired_one(pair: tuple[str, str], tmp_path: Path) -> None:
    request, old = str(tmp_path / "request"), str(tmp_path / "old.pem")
    for command in (
        ["openssl", "req", "-new", "-key", pair[1], "-subj", "/CN=old", "-out", request],
        ["openssl", "x509", "-req", "-in", request, "-signkey", pair[1], "-days", "0", "-out", old],
    ):
        subprocess.run(command, check=True, capture_output=True)
    assert "old.pem is not valid (certificate has expired): renew it." in refused(old, pair[1])


def test_an_encrypted_key(pair: tuple[str, str], tmp_path: Path) -> None:
    encrypted = str(tmp_path / "encrypted.key")
    command = ["openssl", "pkey", "-in", pair[1], "-aes256", "-passout", "pass:x", "-out", encrypted]
    subprocess.run(command, check=True, capture_output=True)
    assert "is encrypted: write it without a password" in refused(pair[0], encrypted)


def test_files_that_cannot_be_used(pair: tuple[str, str], tmp_path: Path) -> None:
    cert, key = pair
    nowhere = str(tmp_path / "nowhere")
    assert refused(nowhere, key).startswith(f"HEADRACE_TLS_CERT: {nowhere} cannot be read (No such file")
    assert refused(cert, nowhere).startswith(f"HEADRACE_TLS_KEY: {nowhere} cannot be read (No such file")
    assert refused(cert, str(tmp_path)).startswith(f"HEADRACE_TLS_KEY: {tmp_path} cannot be read (Is a directory")
    assert "holds no certificate in PEM" in refused(key, key)
    assert refused(cert, cert).startswith(f"HEADRACE_TLS_KEY: {cert} with {cert} cannot be used")


def test_one_without_the_other_is_refused_when_settings_are_read() -> None:
    for given, missing in (("CERT", "KEY"), ("KEY", "CERT")):
        with pytest.raises(SettingsError, match=f"HEADRACE_TLS_{missing} is missing: HEADRACE_TLS_{given} needs it"):
            load({f"HEADRACE_TLS_{given}": "/x.pem"}, ())


def test_urls_become_https_and_only_the_own_server_is_pinned(pair: tuple[str, str]) -> None:
    settings = Settings(tls_cert=pair[0], tls_key=pair[1], host="0.0.0.0")
    assert (settings.functions, settings.control) == ("https://127.0.0.1:7780", "https://127.0.0.1:7700")
    for url, own in ((settings.control, True), (settings.functions, True), ("https://127.0.0.1:7", False)):
        with http_client(settings, url) as client:
            context = client._transport._pool._ssl_context  # type: ignore[attr-defined]
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.check_hostname is not own
        assert (len(context.get_ca_certs()) == 1) is own
