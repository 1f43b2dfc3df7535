"""Says where packages come from on this machine, for the builds of its functions: NAME=value, a line each.

That is pip's configuration, as pip itself merges files and environment. `CA_BUNDLE` is a file of this machine.
Nothing is printed where there is no pip, or nothing is configured.
"""

import ast
import re
import subprocess
import sys

TAKEN = {
    "index-url": "PIP_INDEX_URL",
    "extra-index-url": "PIP_EXTRA_INDEX_URL",
    "trusted-host": "PIP_TRUSTED_HOST",
    "cert": "CA_BUNDLE",
}
LINE = re.compile(r"^(?P<section>[^.]+)\.(?P<name>[a-z-]+)=(?P<value>.*)$")
RANK = {"global": 0, "install": 1, ":env:": 2}  # the later wins


def main():
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    listed = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False).stdout
    for name, value in parsed(listed).items():
        if name in TAKEN and (remote := usable(name, value)):
            print(f"{TAKEN[name]}={remote}")


def parsed(text):
    """Values by name, of `section.name='value'` lines."""
    found = {}
    for line in text.splitlines():
        match = LINE.match(line)
        if match and match["section"] in RANK:
            place = RANK[match["section"]]
            if place >= found.get(match["name"], (0, ""))[0]:
                found[match["name"]] = (place, str(ast.literal_eval(match["value"])))
    return {name: value for name, (_, value) in found.items()}


def usable(name, value):
    """Without addresses that only this machine can open."""
    words = value.split()
    if name.endswith("index-url"):
        words = [word for word in words if word.startswith(("http://", "https://"))]
    return " ".join(words) if name != "cert" else value


main()
