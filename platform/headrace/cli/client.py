"""The control API as the command line uses it. Every failure comes out as a `HeadraceError` that says what to do."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from headrace import errors, tls
from headrace.settings import Settings

_TIMEOUT = httpx.Timeout(60.0, connect=5.0, write=120.0)
_UPLOAD_TIMEOUT = httpx.Timeout(300.0, connect=5.0)
_STREAM_TIMEOUT = httpx.Timeout(60.0, connect=5.0)  # a stream says every 15 s that it is alive
_PAGE = 100


class Unreachable(errors.HeadraceError):
    """Nothing answers where the control API should be, or the connection broke."""

    code, title, retryable = "unreachable", "Unreachable", True


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event; `id` is where to go on after a broken stream."""

    kind: str
    data: str
    id: str

    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.data)
        return value


def find_token(settings: Settings) -> str:
    """The token of the settings, else the admin token in the home; empty when there is none to read."""
    if settings.token:
        return settings.token
    try:
        return (settings.home / "admin-token").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _trust(settings: Settings) -> str:
    if settings.token:
        return "the token is the one in HEADRACE_TOKEN"
    path = settings.home / "admin-token"
    if path.exists():
        return f"the token is the one in {path}; set HEADRACE_TOKEN to use another"
    return f"set HEADRACE_TOKEN, or HEADRACE_HOME to the home of this Headrace ({path} does not exist)"


def http_client(settings: Settings, url: str, **options: Any) -> httpx.Client:
    """A client for `url`: no proxies from the environment, this machine's certificates, read only where needed.

    The server of these settings shows the certificate in them, which needs no authority; no other is taken from it.
    """
    trusted: ssl.SSLContext | bool = False
    if url.startswith("https:"):
        own = bool(settings.tls_cert) and urlsplit(url).netloc in _own_places(settings)
        trusted = tls.pinned(settings.tls_cert) if own else ssl.create_default_context()
    return httpx.Client(verify=trusted, trust_env=False, **options)


def _own_places(settings: Settings) -> set[str]:
    control = set() if settings.control_url else {urlsplit(settings.control).netloc}
    return {urlsplit(settings.functions).netloc, *control}


class Control:
    """A client of one control API."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.token = find_token(settings)
        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        self._http = http_client(
            settings, settings.control, base_url=f"{settings.control}/v1", headers=headers, timeout=_TIMEOUT
        )

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **params: Any) -> Any:
        return self._json("GET", path, params=params)

    def send(self, method: str, path: str, body: Mapping[str, Any] | None = None, **params: Any) -> Any:
        """Send `body` as JSON; the answer, None when it is empty."""
        return self._json(method, path, params=params, json=body)

    def upload(self, path: str, bundle: Any, config: Mapping[str, Any], **params: Any) -> tuple[dict[str, Any], bool]:
        """Post the bundle (an open tar.gz, or None) with its config: the version, and whether it is new."""
        if bundle is None:
            sent: dict[str, Any] = {"json": {"config": config}}
        else:
            files = {"bundle": ("bundle.tar.gz", bundle, "application/gzip")}
            sent = {"files": files, "data": {"config": json.dumps(config)}}
        with self._failures():
            answer = self._http.post(path, params=_present(params), timeout=_UPLOAD_TIMEOUT, **sent)
        return self._body(answer), answer.status_code != httpx.codes.OK

    def items(self, path: str, limit: int, **params: Any) -> dict[str, Any]:
        """Up to `limit` items of a list, from as many pages as it takes: `{"items": [...], "next": cursor or None}`."""
        items: list[Any] = []
        cursor = None
        while len(items) < limit:
            page = self.get(path, limit=min(limit - len(items), _PAGE), cursor=cursor, **params)
            items += page["items"]
            cursor = page["next"]
            if cursor is None:
                break
        return {"items": items, "next": cursor}

    def events(self, path: str, after: str, **params: Any) -> Iterator[Event]:
        """Server-sent events that follow the one with the id `after` (empty: from the start), until one says `end`.

        Raises `Unreachable` when the stream breaks: ask again, after the last event.
        """
        headers = {"last-event-id": after} if after else {}
        params = _present({**params, "follow": True})
        with (
            self._failures(),
            self._http.stream("GET", path, params=params, headers=headers, timeout=_STREAM_TIMEOUT) as answer,
        ):
            if answer.is_error:
                answer.read()
                self._body(answer)
            for event in _parse_events(answer.iter_lines()):
                if event.kind == "end" and "code" in event.json():
                    raise errors.from_problem(event.json())
                yield event
                if event.kind == "end":
                    return
        raise Unreachable(f"Headrace at {self._settings.control} ended the stream: try again.")

    def _json(self, method: str, path: str, params: Mapping[str, Any], **options: Any) -> Any:
        with self._failures():
            answer = self._http.request(method, path, params=_present(params), **options)
        return self._body(answer)

    def _body(self, answer: httpx.Response) -> Any:
        if answer.status_code == httpx.codes.NO_CONTENT:
            return None
        try:
            body = answer.json()
        except ValueError:
            body = None
        if answer.is_success and body is not None:
            return body
        if not isinstance(body, dict) or "code" not in body:
            raise errors.HeadraceError(
                f"{answer.request.url} answered {answer.status_code} with something that Headrace never says: "
                "check that HEADRACE_CONTROL_URL leads to its control API."
            )
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise errors.Unauthenticated(f"{body['detail']} The command line: {_trust(self._settings)}.")
        raise errors.from_problem(body)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        base = self._settings.control
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Unreachable(
                f"Headrace does not answer at {base}: start it with `headrace up`, or set HEADRACE_CONTROL_URL to "
                f"where it runs ({error})."
            ) from None
        except httpx.TimeoutException:
            raise Unreachable(f"Headrace at {base} took too long to answer: try again; `headrace doctor`.") from None
        except httpx.RemoteProtocolError:
            raise Unreachable(f"Headrace at {base} ended its answer early, as when it restarts: try again.") from None
        except httpx.TransportError as error:
            raise Unreachable(f"the connection to Headrace at {base} broke ({error}): try again.") from None
        except httpx.InvalidURL as error:
            raise errors.SettingsError(f"HEADRACE_CONTROL_URL is {base!r}: {error}.") from None


def _present(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def _parse_events(lines: Iterator[str]) -> Iterator[Event]:
    kind, id, data = "message", "", list[str]()
    for line in lines:
        if not line:
            if data:
                yield Event(kind, "\n".join(data), id)
            kind, data = "message", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "event":
            kind = value
        elif name == "id":
            id = value
