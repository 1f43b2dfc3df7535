"""Entry point of `python3 -I <directory of this package>`.

Python puts the package's own directory on the path, where its modules would shadow the user's (`main`, `logs`).
It goes away at once, and the parent stands in for as long as the package needs to be found.
"""

import os
import sys


def _start() -> None:
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib costs ten milliseconds
    parent = os.path.dirname(here)  # noqa: PTH120
    sys.path[:] = [parent, *(entry for entry in sys.path if os.path.abspath(entry) != here)]  # noqa: PTH100
    if os.getpid() == 1:
        from headrace_shim.init import supervise

        supervise()
    from headrace_shim import lazy

    lazy.prepare()
    from headrace_shim.main import main

    sys.path.remove(parent)
    main()


if __name__ == "__main__":
    _start()
