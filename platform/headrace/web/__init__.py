"""The function port's server: HTTP/1.1, HTTP/2 and WebSockets on the node's own event loop.

Bytes are parsed by libraries (llhttp through httptools, h2, websockets); what is here ties them to connections: limits,
timeouts, back-pressure, broken peers. A request is an `Exchange`, whatever it came by; who serves it gets that and
nothing else.
"""
