"""Entry point of `python3 -I <directory of this package>`; `headrace_shim` lies beside it."""

import os
import sys


def _start() -> None:
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib costs ten milliseconds
    sys.path[:] = [os.path.dirname(here), *(entry for entry in sys.path if os.path.abspath(entry) != here)]  # noqa: PTH100, PTH120
    if os.getpid() == 1:
        from headrace_shim.init import supervise

        supervise()
    from headrace_shim import lazy

    lazy.prepare()
    from headrace_shim.main import main

    from headrace_image.load import load

    main(load)


if __name__ == "__main__":
    _start()
