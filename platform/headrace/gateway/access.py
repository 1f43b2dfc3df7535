"""Who may call a private function: tokens by their SHA-256, as a snapshot that the node swaps in."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping

from headrace import errors
from headrace.gateway.routes import Route
from headrace.model import Token

_CALLS = ("invoke", "admin")  # scopes that may call


class Gatekeeper:
    def __init__(self) -> None:
        self.tokens: Mapping[str, Token] = {}

    def check(self, route: Route, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Raise `Unauthenticated` or `Forbidden` unless the function is public or the bearer's token may call it."""
        if not route.private:
            return
        secret = next((value for name, value in headers if name == b"authorization"), b"")
        scheme, _, secret = secret.partition(b" ")
        token = self.tokens.get(hashlib.sha256(secret.strip()).hexdigest())
        if scheme.lower() != b"bearer" or token is None or (token.expires_at or float("inf")) <= time.time():
            raise errors.Unauthenticated("this function is private: send Authorization: Bearer with a valid token.")
        if not any(scope in token.scopes for scope in _CALLS):
            raise errors.Forbidden("this token may not call functions: it lacks the scope invoke.")
        if token.namespaces and route.function.namespace not in token.namespaces:
            raise errors.Forbidden("this token is not for the namespace of this function.")
