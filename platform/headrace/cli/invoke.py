"""`headrace invoke`: call a function over HTTP, as anybody would, and explain what goes wrong."""

from __future__ import annotations

import json
import mimetypes
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import httpx

from headrace import errors
from headrace.cli.client import Control, Unreachable, http_client
from headrace.cli.output import Output, bytes_text
from headrace.cli.session import Session
from headrace.model import DEFAULT_NAMESPACE, NAME_PATTERN, check_name
from headrace.settings import Settings

_TIMEOUT = httpx.Timeout(960.0, connect=5.0)  # a call may wait in the queue and then run for 900 s
_PRETTY_LIMIT = 1 << 20
_METHOD = re.compile(r"[A-Za-z]{1,20}")
_WHICH = re.compile(rf"[1-9][0-9]{{0,8}}|{NAME_PATTERN.strip('^$')}")
_TIMING = re.compile(r"(\w+);dur=([0-9.]+)")


def invoke(
    session: Session,
    target: str,
    namespace: str,
    *,
    data: str | None,
    method: str | None,
    path: str,
    headers: Sequence[str],
    verbose: bool,
) -> None:
    """Call `target` and print its answer. Raises `SystemExit(1)` when the status is 400 or more."""
    out, control = session.out, session.control
    given = _headers(headers)
    verb = _check_method(method) if method else ("GET" if data is None else "POST")
    url, private = _address(session.settings, control, target, namespace)
    if private and control.token:
        given = {"authorization": f"Bearer {control.token}"} | given
    with ExitStack() as files:
        body, kind = _body(out, data, files)
        sent = {"content-type": kind} | given if kind else given
        request = httpx.Request(verb, _at(url, path), content=body, headers=sent)
        status = _call(session, request, verbose)
    if status >= 400:
        raise SystemExit(1)


def _at(url: str, path: str) -> httpx.URL:
    try:
        return httpx.URL(url + path if path.startswith("/") or not path else f"{url}/{path}")
    except httpx.InvalidURL as error:
        raise errors.Invalid(f"--path {path[:80]!r} makes no valid address: {error}.") from None


def _call(session: Session, request: httpx.Request, verbose: bool) -> int:
    """Send `request`, print the answer as it comes; its status."""
    try:
        with http_client(session.settings, str(request.url), timeout=_TIMEOUT) as http:
            answer = http.send(request, stream=True)
            try:
                _show(session.out, answer, verbose)
            finally:
                answer.close()
            return answer.status_code
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise Unreachable(
            f"nothing answers at {request.url}: is the node running? See `headrace doctor` ({error})."
        ) from None
    except httpx.TransportError as error:
        raise Unreachable(f"the connection to {request.url} broke before the whole answer came ({error}).") from None


def _address(settings: Settings, control: Control, target: str, namespace: str) -> tuple[str, bool]:
    """The URL of `NAME[@VERSION]`, and whether it needs a token."""
    name, at, which = target.partition("@")
    check_name(name)
    if at and not _WHICH.fullmatch(which):
        raise errors.Invalid(f"{target[:80]!r}: after '@' comes a version such as 2, or an alias such as live.")
    try:
        function = control.get(f"/functions/{name}", namespace=namespace)
    except Unreachable:  # functions answer even while the control API does not
        place = "" if namespace == DEFAULT_NAMESPACE else f".{namespace}"
        return f"{settings.functions}/fn/{name}{place}{at}{which}", False
    return f"{function['url']}{at}{which}", function["access"] == "private"


def _body(out: Output, data: str | None, files: ExitStack) -> tuple[bytes | IO[bytes] | None, str]:
    """What to send and its content type: JSON or text as given, `@file`, or `-` for standard input."""
    if data is None:
        return None, ""
    if data.startswith("@"):
        path = Path(data[1:])
        try:
            return files.enter_context(path.open("rb")), mimetypes.guess_type(path.name)[
                0
            ] or "application/octet-stream"
        except OSError as error:
            raise errors.Invalid(f"--data {data}: the file cannot be read ({error.strerror}).") from None
    content = out.stdin.buffer.read() if data == "-" else data.encode("utf-8", "surrogateescape")
    return content, _guess(content)


def _guess(content: bytes) -> str:
    try:
        json.loads(content.decode())
    except UnicodeDecodeError:
        return "application/octet-stream"
    except ValueError:
        return "text/plain; charset=utf-8"
    return "application/json"


def _headers(pairs: Sequence[str]) -> dict[str, str]:
    headers = {}
    for pair in pairs:
        name, colon, value = pair.partition(":")
        if not colon or not name.strip() or not (name + value).isprintable() or not pair.isascii():
            raise errors.Invalid(f"--header {pair[:80]!r}: write it as 'Name: value', in ASCII.")
        headers[name.strip().lower()] = value.strip()
    return headers


def _check_method(method: str) -> str:
    if not _METHOD.fullmatch(method):
        raise errors.Invalid(f"--method {method[:40]!r} is not an HTTP method: give one such as GET or POST.")
    return method.upper()


def _show(out: Output, answer: httpx.Response, verbose: bool) -> None:
    if verbose:
        _show_facts(out, answer)
    more = f"headrace invocations {answer.headers.get('headrace-invocation')}"
    if "headrace-error" in answer.headers:
        error = _explained(answer)
        out.failure(error)
        if more in error.detail:
            return
    else:
        _show_body(out, answer)
        if answer.status_code < 400:
            return
        out.note(f"The function answered {answer.status_code} {answer.reason_phrase}.", "red")
    if "headrace-invocation" in answer.headers:
        out.note(f"More about this call: {more}")


def _explained(answer: httpx.Response) -> errors.HeadraceError:
    """What the platform says about a call that it could not serve."""
    content = answer.read()
    try:
        problem = json.loads(content)
        return errors.from_problem(problem)
    except (ValueError, AttributeError):
        return errors.HeadraceError(f"the platform answered {answer.status_code}: {content[:500]!r}.")


def _show_body(out: Output, answer: httpx.Response) -> None:
    if not out.terminal:
        for piece in answer.iter_bytes():
            out.raw(piece)
        return
    kind = answer.headers.get("content-type", "").partition(";")[0].strip()
    if kind.endswith("json") and int(answer.headers.get("content-length", _PRETTY_LIMIT)) < _PRETTY_LIMIT:
        out.line(_pretty(answer.read().decode("utf-8", "replace")))
    elif not kind or kind.endswith("json") or kind.startswith("text/"):
        for text in answer.iter_text():
            out.text(text)
        out.text("\n")
    else:
        size = sum(len(piece) for piece in answer.iter_bytes())
        out.note(f"{bytes_text(size)} of {kind}: redirect the output to a file to keep them.")


def _pretty(text: str) -> str:
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except ValueError:
        return text


def _show_facts(out: Output, answer: httpx.Response) -> None:
    told = {name: answer.headers.get(f"headrace-{name}") for name in ("invocation", "version")}
    facts = [f"status {answer.status_code}", *(f"{name} {value}" for name, value in told.items() if value)]
    timings = _TIMING.findall(answer.headers.get("server-timing", ""))
    facts += [f"{name} {duration} ms" for name, duration in timings]
    out.note(", ".join(facts), "dim")
