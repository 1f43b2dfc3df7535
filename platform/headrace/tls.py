"""The certificate that both ports may serve: is it usable, and how this machine's own clients trust it.

`check` does what a client does: it shakes hands with the certificate, in memory. So a key of another certificate, a
certificate that has expired and files that nobody can read are found before a port is opened with them.
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from headrace.errors import SettingsError

_CERT, _KEY = "HEADRACE_TLS_CERT", "HEADRACE_TLS_KEY"
_FIRST = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_MISMATCHES = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
_TURNS = 10  # a handshake takes three


class _Encrypted(Exception):
    """The key has a password."""


class Certificate(NamedTuple):
    """`until`: seconds since the epoch. `names`: the host names and addresses it is for."""

    until: float
    names: tuple[str, ...]


def check(cert: str, key: str) -> Certificate:
    """What clients will see of the certificate in `cert`, a PEM file that may hold its chain, with the key in `key`.

    Raises `SettingsError` when they can't be served: unreadable, no PEM, encrypted, of another key, not valid now.
    """
    _read(_KEY, key)
    client = pinned(cert)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        server.load_cert_chain(cert, key, password=_no_password)
    except _Encrypted:
        _refuse(f"{_KEY}: the key in {key} is encrypted: write it without a password, for example with openssl pkey.")
    except ssl.SSLError as error:
        if error.reason in _MISMATCHES:
            _refuse(f"{_KEY}: the key in {key} is not that of the certificate in {cert}: name the pair.")
        _refuse(f"{_KEY}: {key} with {cert} cannot be used ({error.reason or error}): give its key in PEM.")
    try:
        seen = _shake_hands(server, client)
    except ssl.SSLCertVerificationError as error:
        _refuse(f"{_CERT}: the certificate in {cert} is not valid ({error.verify_message}): renew it.")
    except ssl.SSLError as error:
        _refuse(f"{_CERT}: the certificate in {cert} cannot be served ({error.reason or error}): make another.")
    names = tuple(value for kind, value in seen.get("subjectAltName", ()) if kind in ("DNS", "IP Address"))
    return Certificate(ssl.cert_time_to_seconds(seen["notAfter"]), names)


def pinned(cert: str) -> ssl.SSLContext:
    """For a client of this machine's own server: trusts the (first) certificate in `cert` and no other.

    The name is not compared, because the client dials loopback and the certificate is for the world's name.
    """
    first = _FIRST.search(_read(_CERT, cert))
    if first is None:
        _refuse(f"{_CERT}: {cert} holds no certificate in PEM, which begins with -----BEGIN CERTIFICATE-----.")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it may be no authority, and still is all that is trusted
    try:
        context.load_verify_locations(cadata=first[0])
    except ssl.SSLError as error:
        _refuse(f"{_CERT}: {cert} holds no certificate that can be read ({error.reason or error}).")
    return context


def _read(name: str, path: str) -> str:
    try:
        return Path(path).read_text("latin-1")
    except OSError as error:
        _refuse(f"{name}: {path} cannot be read ({error.strerror}): name a PEM file that this user may read.")


def _refuse(detail: str) -> NoReturn:
    raise SettingsError(detail) from None


def _no_password() -> NoReturn:
    """Asked only for an encrypted key; without this, OpenSSL would ask the terminal."""
    raise _Encrypted


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> dict[str, Any]:
    """The certificate as the client sees it. Raises `ssl.SSLError`."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(back, there)
    answering = server.wrap_bio(there, back, server_side=True)
    for _ in range(_TURNS):
        for side in (asking, answering):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            if side is asking:
                return asking.getpeercert() or {}
    raise ssl.SSLError(1, "the handshake does not end")
