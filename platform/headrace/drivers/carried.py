"""The programs that are carried into images which versions bring: packed once out of a base image, below HOME.

They run in any image, whatever it holds, because nothing of it is used: see the `pack` program of the runtime.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from pathlib import Path

from docker import APIClient
from docker.errors import DockerException

from headrace.drivers import containers, sandbox
from headrace.drivers.engine import Engine
from headrace.drivers.procfs import process_tag
from headrace.runtimes import Carried, Runtime
from headrace.settings import Settings

_CUT_OFF_S = 3600.0
_OWN_FILE = "{runtime}/"


class Carrier:
    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self._root = settings.home / "carried"

    def directory(self, runtime: Runtime) -> Path:
        """Where the programs of `runtime` are, made or not: named by what they are made from."""
        digest = hashlib.sha256(runtime.image_name(self._settings).encode())
        for argument in runtime.carried.pack if runtime.carried is not None else ():
            digest.update(b"\0" + argument.encode())
            if argument.startswith(_OWN_FILE):
                digest.update((runtime.directory / argument.removeprefix(_OWN_FILE)).read_bytes())
        return self._root / digest.hexdigest()[:16]

    def there(self, runtime: Runtime) -> bool:
        """Whether nothing has to be packed for `runtime`."""
        return runtime.carried is None or self.directory(runtime).is_dir()

    async def ensure(self, runtime: Runtime) -> None:
        """Pack them unless that was done. Needs the base image. Takes some seconds."""
        final = self.directory(runtime)
        if runtime.carried is None or self.there(runtime):
            return
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = self._root / f".new-{secrets.token_hex(8)}"
        carried = runtime.carried
        await self._engine.call("packing programs", lambda client: self._pack(client, runtime, carried, fresh, final))

    def tidy(self) -> None:
        """Remove what packing left that was cut off."""
        for path in self._root.glob(".new-*"):
            if path.stat().st_mtime < time.time() - _CUT_OFF_S:
                shutil.rmtree(path, ignore_errors=True)

    def _pack(self, client: APIClient, runtime: Runtime, carried: Carried, fresh: Path, final: Path) -> None:
        fresh.mkdir()
        name = sandbox.build_name(self._settings.home_tag, f"pack-{fresh.name[5:]}")
        config = sandbox.pack_config(
            runtime.image_name(self._settings),
            carried.pack,
            self._settings.home_tag,
            owner=process_tag(os.getpid()),
            source=runtime.directory,
            out_dir=fresh,
        )
        try:
            sandbox.open_for_writing(fresh)
            output = containers.create_attached(client, name, config)
            said = b""
            try:
                while (data := output.read()) is not None:
                    said = (said + data)[-2000:]
                state = containers.final_state(client, name)
            finally:
                containers.remove(client, name)
                output.close()
            if state["ExitCode"] != 0:
                raise DockerException(f"packing them ended with {said.decode(errors='replace').strip()[-500:]}")
            fresh.chmod(0o755)
            if not final.is_dir():
                fresh.rename(final)
        except OSError:
            if not final.is_dir():  # else another process was first
                raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
