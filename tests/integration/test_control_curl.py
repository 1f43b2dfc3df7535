"""The documentation page alone is enough: every line of curl on it works as it stands."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from html import unescape
from pathlib import Path

import httpx
from test_control_records import CALL, record

from control_kit import World, served, world, zipped

BUNDLE = {"handler.py": "def handler(event, context):\n    return 'another'\n"}


async def lines_of(base: str) -> list[str]:
    async with httpx.AsyncClient(base_url=base, trust_env=False) as http:
        page = unescape((await http.get("/docs")).text)
    return [line for block in page.split("<pre>curl")[1:] for line in f"curl{block.split('</pre>')[0]}".splitlines()]


async def run(line: str, place: Path, w: World) -> str:
    """Run a line as a user would paste it; what it prints. Fails when the API says no."""
    process = await asyncio.create_subprocess_exec(
        "sh",
        "-c",
        line.replace("curl ", "curl -sS --fail-with-body --noproxy '*' ", 1),
        cwd=place,
        env={"TOKEN": w.admin, "PATH": "/usr/bin:/bin"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0, f"{line}\n{printed.decode()}"
    await w.build()
    return printed.decode()


async def test_every_line_of_curl_works_when_pasted(tmp_path: Path) -> None:
    (tmp_path / "bundle.zip").write_bytes(zipped(BUNDLE))
    async with world(tmp_path / "home") as w, served(w.app) as base:
        await record(w, replace(CALL, id="0a1b2c3d4e5f", started_at=w.clock.now()))
        lines = await lines_of(base)
        document = w.app.openapi()
        assert len(lines) == sum(len(item) for item in document["paths"].values()) + 1, "an upload has two"
        last = [line for line in lines if line.startswith("curl -X DELETE")]
        for line in [line for line in lines if line not in last] + last[::-1]:
            await run(line, tmp_path, w)
        assert (await w.http.get("/v1/functions")).json()["items"] == []
        assert [token["name"] for token in (await w.http.get("/v1/tokens")).json()["items"]] == ["admin"]
