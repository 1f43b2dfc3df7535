"""What a request says of its caller: believed from trusted proxies, replaced otherwise; hop-by-hop headers end here."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from headrace.errors import CallerError
from headrace.gateway.proxies import Proxies
from web_kit import Recorded

TRUSTING = Proxies(map(ip_network, ("10.0.0.0/8", "fd00::/8")))
HOST = (b"host", b"shop.example")


def admitted(
    *headers: tuple[bytes, bytes], peer: str = "10.0.0.1", proxies: Proxies = TRUSTING, scheme: str = "http"
) -> dict[str, Any]:
    """Client and scheme after `admit`, and the headers as a dict of lists."""
    request = Recorded(headers=list(headers), client=peer, scheme=scheme)
    proxies.admit(request)
    told: dict[str, list[str]] = {}
    for name, value in request.headers:
        told.setdefault(name.decode(), []).append(value.decode())
    return {"client": request.client, "scheme": request.scheme, "headers": told}


def test_nobodys_word_is_taken_without_proxies() -> None:
    lies = [(b"x-forwarded-for", b"1.1.1.1"), (b"x-forwarded-proto", b"https"), (b"x-forwarded-host", b"evil.example")]
    lies += [(b"forwarded", b"for=1.1.1.1;proto=https"), (b"x-real-ip", b"1.1.1.1"), (b"x-forwarded-prefix", b"/x")]
    for proxies, peer in ((Proxies(), "10.0.0.1"), (TRUSTING, "203.0.113.7"), (TRUSTING, "2001:db8::1")):
        scope = admitted(HOST, *lies, (b"accept", b"a"), (b"accept", b"b"), peer=peer, proxies=proxies)
        assert (scope["client"], scope["scheme"]) == (peer, "http")
        assert scope["headers"] == {
            "host": ["shop.example"],
            "accept": ["a", "b"],
            "x-forwarded-for": [peer],
            "x-forwarded-proto": ["http"],
        }


@pytest.mark.parametrize(
    ("chain", "caller"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("1.1.1.1, 203.0.113.7, 10.2.3.4", "203.0.113.7"),  # the nearest that is no proxy: the rest is hearsay
        ("10.9.9.9, 10.2.3.4", "10.9.9.9"),
        ("2001:db8::7", "2001:db8::7"),
        ("[2001:db8::7]:443, fd00::1", "2001:db8::7"),
        ("203.0.113.7:5555", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("203.0.113.7, unknown, 10.2.3.4", "10.2.3.4"),
        ("", "10.0.0.1"),
    ],
)
def test_the_caller_behind_trusted_proxies(chain: str, caller: str) -> None:
    scope = admitted(HOST, (b"x-forwarded-for", chain.encode()), (b"x-forwarded-proto", b"HTTPS"))
    assert (scope["client"], scope["scheme"]) == (caller, "https")
    assert scope["headers"]["x-forwarded-for"] == [f"{chain}, 10.0.0.1" if chain else "10.0.0.1"]
    assert scope["headers"]["x-forwarded-proto"] == ["https"]


def test_several_headers_are_one_list_and_ipv4_over_ipv6_is_ipv4() -> None:
    pair = [(b"x-forwarded-for", b"203.0.113.7"), (b"x-forwarded-for", b"10.1.1.1")]
    assert admitted(HOST, *pair, peer="::ffff:10.0.0.1")["client"] == "203.0.113.7"


def test_the_host_that_the_proxy_was_asked_for_counts() -> None:
    assert admitted(HOST, (b"x-forwarded-host", b"a.example:8443"))["headers"]["host"] == ["a.example:8443"]
    assert admitted(HOST, (b"x-forwarded-host", b"a b/../c"))["headers"]["host"] == ["shop.example"]


def test_forwarded_is_read_where_there_is_nothing_else() -> None:
    told = (b"forwarded", b'for="[2001:db8::7]:1";proto=https;host=a.example, for=10.2.3.4')
    scope = admitted(HOST, told)
    assert (scope["client"], scope["scheme"]) == ("2001:db8::7", "https")
    assert scope["headers"]["host"] == ["a.example"]
    assert "forwarded" not in scope["headers"]
    both = admitted(HOST, told, (b"x-forwarded-for", b"203.0.113.7"))
    assert (both["client"], both["scheme"]) == ("203.0.113.7", "http")


def test_what_is_meant_for_this_hop_ends_here() -> None:
    named = (b"connection", b"close, X-Secret , content-length,host, transfer-encoding")
    scope = admitted(HOST, (b"x-secret", b"1"), (b"x-other", b"2"), (b"content-length", b"3"), named, peer="1.2.3.4")
    assert "x-secret" not in scope["headers"]
    assert scope["headers"]["x-other"] == ["2"]
    assert scope["headers"]["content-length"] == ["3"], "how long the body is, is not the caller's to take away"
    assert scope["headers"]["host"] == ["shop.example"]


@pytest.mark.parametrize("hosts", [(b"a", b"b"), (b"a", b"a"), (b"",), ()])
def test_a_request_names_one_host(hosts: tuple[bytes, ...]) -> None:
    with pytest.raises(CallerError, match="Host"):
        admitted(*((b"host", host) for host in hosts), (b"accept", b"*/*"))
