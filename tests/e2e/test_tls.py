"""TLS by setting, as the README says it: both ports, both versions of HTTP, WebSockets and the command line."""

from __future__ import annotations

import re
import shlex
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from stack import ROOT, Headrace, headrace

APP = """
import json
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": scope["scheme"]})
        return
    told = {name: scope[name] for name in ("scheme", "http_version", "server")}
    told["headers"] = {name.decode(): value.decode() for name, value in scope["headers"]}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(told).encode()})
"""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the README's command makes, in a directory of its own."""
    place = tmp_path_factory.mktemp("tls")
    found = re.search(r"^(openssl req (?:.*\\\n)*.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert found is not None
    subprocess.run(shlex.split(found[1].replace("\\\n", "")), cwd=place, check=True, capture_output=True)
    return place


@pytest.fixture(scope="module")
def secure(certificate: Path) -> Iterator[Headrace]:
    files = {"tls_cert": str(certificate / "cert.pem"), "tls_key": str(certificate / "key.pem")}
    with headrace(driver="process", **files) as platform:
        platform.deploy("app", {"main.py": APP}, {"handler": "main.app"})
        yield platform


def test_both_versions_of_http_are_offered(secure: Headrace) -> None:
    for second in (False, True):
        with httpx.Client(http2=second, verify=secure.trust) as client:
            answer = client.get(secure.url("app"))
            assert answer.http_version == ("HTTP/2" if second else "HTTP/1.1")
            told = answer.json()
            assert (told["scheme"], told["http_version"]) == ("https", "2" if second else "1.1")
            assert told["headers"]["x-forwarded-proto"] == "https"
    assert secure.api.get("/functions/app").json()["url"] == secure.url("app")
    assert secure.url("app").startswith("https://")


def test_sockets(secure: Headrace) -> None:
    assert isinstance(secure.trust, ssl.SSLContext)
    with connect(secure.url("app").replace("https", "wss", 1), ssl=secure.trust) as web_socket:
        assert web_socket.recv() == "wss"


def test_the_command_line_trusts_its_own_server_and_no_other(secure: Headrace, tmp_path: Path) -> None:
    assert "https://" in secure.cli("functions")
    assert '"scheme": "https"' in secure.cli("invoke", "app")
    assert "valid for" in secure.cli("doctor", check=False)
    other = str(tmp_path / "other.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", str(tmp_path / "other.key"), "-out", other], check=True, capture_output=True)
    mine = dict(secure.environment)
    try:
        secure.environment["HEADRACE_TLS_CERT"] = other
        assert "CERTIFICATE_VERIFY_FAILED" in secure.cli("functions", code=1, check=False)
        secure.environment["HEADRACE_HOME"] = str(tmp_path / "home")
        assert "is not that of the certificate" in secure.cli("up", code=2, check=False)
    finally:
        secure.environment.update(mine)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")  # old versions are what is tried
@pytest.mark.parametrize("port", ["functions", "control"])
def test_who_does_not_speak_tls_gets_nothing(secure: Headrace, port: str) -> None:
    place = httpx.URL(getattr(secure, port))
    with socket.create_connection((place.host, place.port or 0), 15) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = connection.recv(1000)
    assert b"HTTP" not in answer
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with socket.create_connection((place.host, place.port or 0), 15) as connection, pytest.raises(ssl.SSLError):
        old.wrap_socket(connection)
