"""Says where packages come from on this machine, for the builds of its functions: NAME=value, a line each.

That is npm's configuration: as npm itself tells it where there is one, else from the environment and the user's file.
`CA_BUNDLE` is a file of this machine. What npm would do by itself is not printed.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

LINE = re.compile(r"""(?m)^\s*(?P<name>registry|cafile)\s*=\s*(?P<quote>["']?)(?P<value>\S+?)(?P=quote)\s*$""")


def main():
    found = {match["name"]: match["value"] for match in LINE.finditer(configured())}
    if found.get("registry", "").startswith(("http://", "https://")):
        print(f"npm_config_registry={found['registry']}")
    if "cafile" in found:
        print(f"CA_BUNDLE={found['cafile']}")


def configured():
    """`name = value` lines, those that count more later."""
    if npm := shutil.which("npm"):
        command = [npm, "config", "list"]
        text = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False).stdout
        return "\n".join(reversed(text.splitlines()))  # npm names what counts most first
    file = Path.home() / ".npmrc"
    text = file.read_text(errors="replace") if file.is_file() else ""
    environment = {name.lower(): value for name, value in os.environ.items()}
    own = [f"{name}={environment.get(f'npm_config_{name}', '')}" for name in ("registry", "cafile")]
    return "\n".join([text, *own])


main()
