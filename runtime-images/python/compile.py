"""Compiles the shim in the directory that is named: an instance of the same Python then starts sooner and smaller.

Another Python does not look at what this one has made.
"""

import compileall
import sys
from py_compile import PycInvalidationMode

compileall.compile_dir(sys.argv[1], quiet=1, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)
