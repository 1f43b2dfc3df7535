"""How much a peer may ask for, and how long it may take."""

from __future__ import annotations

HEAD_BYTES = 64 << 10  # of a request's line and headers together
HEAD_FIELDS = 100
HELD_BYTES = 256 << 10  # of a body that nobody has taken: beyond it the peer has to wait
WRITE_BUFFER = 256 << 10  # bytes that wait for a peer before a stream has to
FLOOD = 1 << 20  # ... and before it is not listened to any more
GRACE_S = 5.0  # a peer has this long to take the last bytes of a connection that is closed
