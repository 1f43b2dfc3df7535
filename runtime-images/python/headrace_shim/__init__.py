"""The Python shim: runs one function inside its instance and speaks frames with the node.

Standard library only, Python 3.9 syntax. It never travels alone: next to these modules sits `wire.py`, a copy of
`headrace.wire`. The map: `main` starts and stops, `link` is the connection, `load` turns LOAD into an
application, `handler` and `asgi` run calls, `logs` captures what user code prints.
"""
