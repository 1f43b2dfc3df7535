"""The Autobahn fuzzing client, the field's conformance test of WebSockets.

It is written in Python 2, which no system ships any more. So it gets a small Debian 11 of its own, the last with that
interpreter, which `debootstrap` makes as it makes base images, and its packages from the index, each by its digest.
The result is kept in `.headrace/` under a name that changes with this file; it is used by `chroot`, on the machine's
own network. Only root can do that.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from headrace.drivers.images import debian_mirror
from stack import ROOT, Failure

_SUITE = "bullseye"
_PACKAGES = "python2.7,python-pkg-resources"
_WHEELS = """
attrs==21.4.0 --hash=sha256:2d27e3784d7a565d36ab851fe94887c5eccd6a463168875832a1be79c82828b4
constantly==15.1.0 --hash=sha256:dd2fa9d6b1a51a83f0d7dd76293d734046aa176e384bf6e33b7e44880eb37c5d
hyperlink==21.0.0 --hash=sha256:e6b14c37ecb73e89c77d78cdb4c2cc8f3fb59a885c5b3f819ff4ed80f25af1b4
idna==2.10 --hash=sha256:b97d804b1e9b523befed77c48dacec60e6dcb0b5391d57af6a65a312a90648c0
incremental==17.5.0 --hash=sha256:717e12246dddf231a349175f48d74d93e2897244939173b01974ab6661406b9f
jinja2==2.11.3 --hash=sha256:03e47ad063331dd6a3f04a43eddca8a966a26ba0c5b7207a9a9e4e08f1b29419
six==1.16.0 --hash=sha256:8abb2f1d86890a2dfb989f9a77cfcfd3e47c2a354b01111771326f8aa26e0254
typing==3.10.0.0 --hash=sha256:c7219ef20c5fbf413b4567092adfc46fa6203cb8454eda33c3fc1afe1398a308
"""
_SOURCES = """
autobahn==0.10.9 --hash=sha256:3fecc1e2a26a0421128ddcfb4e577f0bc669dd65d0e0fdad1c773965cbcef75a
autobahntestsuite==25.10.1 --hash=sha256:b083d6e15330fc16f3e5f0975cce2b15f21bfa0c6db09547316b1852c6dbd6df
markupsafe==1.1.1 --hash=sha256:29872e92839765e546828bb7754a68c418d927cd064fd4708fab9fe9c8bb116b
twisted==20.3.0 --hash=sha256:d72c55b5d56e176563b91d11952d13b01af8725c623e498db5507b6614fc1e10
txaio==2.1.0 --hash=sha256:b94e3dbc83760b68955160fc61a2c34e2798f7a90c41672560f40dfd2946a864
zope.interface==5.5.2 --hash=sha256:bfee1f3ff62143819499e348f5b8a7f3aa0259f9aca5e0ddae7391d059dce671
"""
_MODULES = ("autobahn", "autobahntestsuite", "src/markupsafe", "src/twisted", "txaio", "src/zope")  # in the sources
_RUN = """
import json, sys
from twisted.internet import reactor
from autobahntestsuite import fuzzing
fuzzing.startClient(json.load(sys.stdin))
reactor.run()
"""
_WRITTEN = {
    "run.py": _RUN,
    "unittest2.py": "from unittest import *\n",  # imported, not used
    "twisted/internet/ssl.py": "class ClientContextFactory(object):\n    pass\n",  # TLS needs libraries that are gone
}
_HOME = "opt/autobahn"
_LIMIT_S = 600


class Verdict(NamedTuple):
    """Of a case: OK, NON-STRICT, INFORMATIONAL, UNIMPLEMENTED or FAILED; of its close also WRONG CODE and others."""

    behavior: str
    close: str


def client() -> Path:
    """The root of the client's system, made if it is missing."""
    made = ROOT / ".headrace" / f"autobahn-{sha256(Path(__file__).read_bytes()).hexdigest()[:12]}"
    if not made.exists():
        fresh = made.with_suffix(".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        mirror = [found] if (found := debian_mirror()) else []
        bootstrap = ("unshare", "--mount", "debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _SUITE)
        _run(*bootstrap, str(fresh), *mirror)
        _install(fresh / _HOME)
        fresh.rename(made)
    return made


def fuzz(url: str, cases: list[str], without: list[str]) -> dict[str, Verdict]:
    """What the client thinks of the server at `url`, by case."""
    system = client()
    outdir = system / _HOME / "reports"
    shutil.rmtree(outdir, ignore_errors=True)
    asked = {
        "outdir": f"/{_HOME}/reports",
        "servers": [{"agent": "headrace", "url": url}],
        "cases": cases,
        "exclude-cases": without,
        "exclude-agent-cases": {},
    }
    command = ("chroot", str(system), "/usr/bin/env", f"PYTHONPATH=/{_HOME}", "python2.7", f"/{_HOME}/run.py")
    _run(*command, said=json.dumps(asked))
    found: dict[str, Any] = json.loads((outdir / "index.json").read_text())["headrace"]
    return {case: Verdict(result["behavior"], result["behaviorClose"]) for case, result in found.items()}


def _install(home: Path) -> None:
    home.mkdir(parents=True)
    wheels = ("--only-binary=:all:", "--python-version=27", "--implementation=py", "--abi=none", "--platform=any")
    for wanted, how in ((_WHEELS, wheels), (_SOURCES, ("--no-binary=:all:", "--no-build-isolation"))):
        (home / "wanted.txt").write_text(wanted)
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--no-cache-dir")
        _run(*pip, *how, "--require-hashes", "-r", str(home / "wanted.txt"), "-d", str(home / "packed"))
    for packed in (home / "packed").iterdir():
        if packed.suffix == ".whl":
            zipfile.ZipFile(packed).extractall(home)
        else:
            with tarfile.open(packed) as archive:
                archive.extractall(home / "sources")
    for source in (home / "sources").iterdir():
        for module in _MODULES:
            if (source / module / "__init__.py").exists():
                shutil.copytree(source / module, home / Path(module).name, dirs_exist_ok=True)
    for name, text in _WRITTEN.items():
        (home / name).write_text(text)
    shutil.rmtree(home / "packed")
    shutil.rmtree(home / "sources")


def _run(*command: str, said: str = "") -> None:
    done = subprocess.run(command, input=said, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    if done.returncode:
        raise Failure(f"{command[0]} ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
