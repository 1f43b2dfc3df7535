"""What a request says of its caller, and whose word for it is believed.

A caller may write anything into `X-Forwarded-*` and `Forwarded`. They are believed when the connection comes from a
trusted proxy and dropped otherwise, and so a function reads the same truth behind a proxy and without one: the caller's
address, scheme and host. It gets `X-Forwarded-For` and `X-Forwarded-Proto` with every call, as behind nginx or API
Gateway: the address alone from a caller, the proxies' list and the last proxy's own address from a proxy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

from headrace import errors
from headrace.web.exchange import Exchange
from headrace.web.head import Headers

Network = IPv4Network | IPv6Network

_TOLD = frozenset(  # of the caller, by whoever sent the request
    (
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-prefix",
        b"x-forwarded-proto",
        b"x-forwarded-scheme",
        b"x-forwarded-server",
        b"x-forwarded-ssl",
        b"x-real-ip",
    )
)
_WATCHED = _TOLD | {b"host", b"connection"}
_FRAMING = frozenset((b"host", b"content-length", b"transfer-encoding"))  # no caller may name these hop-by-hop
_QUIET = frozenset((b"keep-alive", b"close"))
_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}  # as proxies say them
_HOST = re.compile(r"[a-z0-9._-]+(?::\d{1,5})?|\[[0-9a-f:.]+\](?::\d{1,5})?", re.IGNORECASE)
_PAIR = re.compile(r'\s*([a-z]+)\s*=\s*(?:"([^"]*)"|([^;,"\s]*))\s*', re.IGNORECASE)
_MOST_HOPS = 100
_REMEMBERED = 1024


class Proxies:
    """The trusted proxies of this node, as networks."""

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self._networks = tuple(networks)
        self._known: dict[str, bool] = {}

    def admit(self, request: Exchange) -> None:
        """Make client, scheme and headers of `request` those of the caller, free of what was meant for this hop only.

        Raises `CallerError` for a request without one clear host.
        """
        headers = request.headers
        told = [pair for pair in headers if pair[0] in _WATCHED]
        peer = request.client
        if peer.startswith("::ffff:"):
            peer = _unmapped(peer)
        scheme = request.scheme
        chain = peer
        plain = told and told[0][0] == b"host" and told[0][1]
        if not (plain and (len(told) == 1 or (len(told) == 2 and told[1][1].lower() in _QUIET))):
            _check_host(told, request.version)
            request.headers = headers = _without(headers, told)
            if self._trusts(peer):
                peer, scheme, chain = self._believe(request, told, peer, scheme)
                headers = request.headers
        request.client = peer
        request.scheme = scheme
        headers += _forwarding(chain, scheme) if chain is peer else _tell(chain, scheme)

    def _believe(self, request: Exchange, told: Headers, peer: str, scheme: str) -> tuple[str, str, str]:
        """Client, scheme and the chain to pass on, as a trusted `peer` tells them; the host goes into the headers."""
        words: dict[bytes, str] = {}
        for name, value in told:
            words[name] = f"{words[name]},{value.decode('latin-1')}" if name in words else value.decode("latin-1")
        if b"x-forwarded-for" in words or b"forwarded" not in words:
            hops = [hop.strip() for hop in words.get(b"x-forwarded-for", "").split(",") if hop.strip()]
            proto = words.get(b"x-forwarded-proto", "").partition(",")[0]
            host = words.get(b"x-forwarded-host", "").partition(",")[0]
        else:
            hops, proto, host = _forwarded(words[b"forwarded"])
        if _HOST.fullmatch(host.strip()):
            kept = [pair for pair in request.headers if pair[0] != b"host"]
            request.headers = [(b"host", host.strip().encode()), *kept]
        scheme = _SCHEMES.get(proto.strip().lower(), scheme)
        hops = hops[-_MOST_HOPS:]
        return self._caller(hops, peer), scheme, ", ".join((*hops, peer))

    def _caller(self, hops: list[str], peer: str) -> str:
        """The nearest address that is no trusted proxy, read from the right: what is left of it is hearsay."""
        caller = peer
        for hop in reversed(hops):
            address = _address(hop)
            if not address:
                break
            caller = address
            if not self._trusts(address):
                break
        return caller

    def _trusts(self, address: str) -> bool:
        if not self._networks:
            return False
        known = self._known.get(address)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            parsed = ip_address(address.partition("%")[0])
            known = self._known[address] = any(parsed in network for network in self._networks)
        return known


def _tell(chain: str, scheme: str) -> Headers:
    """The headers that tell a function of its caller."""
    return [(b"x-forwarded-for", chain.encode("latin-1")), (b"x-forwarded-proto", scheme.encode())]


_forwarding = lru_cache(maxsize=1024)(_tell)  # of a caller without proxies; the list is shared


def _check_host(told: Headers, version: str) -> None:
    """RFC 9112, 3.2: exactly one host with HTTP/1.1; two are how a request is routed one way and read another."""
    hosts = [value for name, value in told if name == b"host"]
    if len(hosts) > 1:
        raise errors.CallerError("the request has more than one Host: send one.")
    if version == "1.1" and not (hosts and hosts[0]):
        raise errors.CallerError("the request has no Host: send the name it was made for.")


def _without(headers: Headers, told: Headers) -> Headers:
    """The headers without what only the sender of the request says, and without what `Connection` names."""
    dropped = set(_TOLD)
    for name, value in told:
        if name == b"connection":
            dropped.update(token.strip() for token in value.lower().split(b","))
    dropped -= _FRAMING
    return [pair for pair in headers if pair[0] not in dropped]


def _forwarded(value: str) -> tuple[list[str], str, str]:
    """Hops, scheme and host of `Forwarded` (RFC 7239); the first element knows what the caller asked for."""
    hops, proto, host = list[str](), "", ""
    for element in value.split(","):
        pairs = {name.lower(): quoted or bare for name, quoted, bare in _PAIR.findall(element)}
        hops.append(pairs.get("for", "unknown"))
        proto, host = proto or pairs.get("proto", ""), host or pairs.get("host", "")
    return hops, proto, host


def _address(hop: str) -> str:
    """The address in `hop`, which may have a port, brackets or quotes; empty for anything else."""
    text = hop.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        parsed = ip_address(text)
    except ValueError:
        return ""
    return str(parsed.ipv4_mapped or parsed) if isinstance(parsed, IPv6Address) else str(parsed)


def _unmapped(address: str) -> str:
    """An IPv4 address that came in over an IPv6 socket, as itself."""
    return address.removeprefix("::ffff:") if "." in address else address
