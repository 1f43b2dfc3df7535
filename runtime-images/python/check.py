"""Reads the files that are named, as the first that is no Python shows: as JSON, with where and why. Runs nothing."""

import json
import sys
from pathlib import Path


def main():
    for path in sys.argv[1:]:
        found = problem(path)
        if found is not None:
            message, line, text = found
            version = f"Python {sys.version_info.major}.{sys.version_info.minor}"
            print(json.dumps({"path": path, "line": line, "message": message, "text": text, "as": version}))
            return


def problem(path):
    try:
        compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)
    except SyntaxError as error:
        return error.msg, error.lineno, error.text
    except ValueError as error:
        return str(error), None, None
    return None


main()
