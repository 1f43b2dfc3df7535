"""The adapter: makes a program that serves HTTP on `$PORT` into an instance that speaks frames.

It runs beside that program, in the container of the version's own image, on an interpreter that the driver carries in.
`load` starts the program and waits until it is ready, `guest` is its process, `app` takes the calls, `http1` and
`websocket` carry them over the loopback interface. Everything towards the node is the shim's (`headrace_shim`).

Standard library, `h11` and `websockets` only, Python 3.9 syntax.
"""
