"""The platform about itself, and the pages that describe the API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from control_kit import World, instance, world
from headrace.errors import StoreUnavailable


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


async def test_system_shows_nodes_disk_queue_and_recovery(w: World) -> None:
    await w.upload()
    generic = {"namespace": None, "function": None, "version": None, "version_id": None}
    w.node.instances = [instance("ready", 2), instance("waiting", 0, **generic)]
    shown = (await w.http.get("/v1/system")).json()
    assert (shown["database"], shown["redis"], shown["driver"]) == ("sqlite", False, "docker")
    assert 0 < shown["disk"]["free_bytes"] <= shown["disk"]["total_bytes"]
    assert shown["queue"] == {"waiting": 1}
    assert [node["id"] for node in shown["nodes"]] == ["n1"]
    node = shown["nodes"][0]
    assert node["recovery"] == {"adopted": 1, "shelved": 0, "removed": 2}
    assert [(item["function"], item["state"], item["in_flight"]) for item in node["instances"]] == [
        ("hello", "ready", 2),
        (None, "waiting", 0),
    ]
    assert node["started_at"] == "2026-01-31T12:00:00Z"
    assert shown["version"] == w.app.version


async def test_prometheus_text_holds_the_nodes_and_the_queue(w: World) -> None:
    await w.upload()
    answer = await w.http.get("/v1/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "headrace_jobs_waiting 1\n" in answer.text
    assert "headrace_test 1\n" in answer.text
    await w.node.close()
    answer = await w.http.get("/v1/metrics")
    assert (answer.status_code, "headrace_test" in answer.text) == (200, False)


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_health_needs_no_token(w: World, prefix: str) -> None:
    async with w.client(None) as http:
        for path in ("healthz", "readyz"):
            answer = await http.get(f"{prefix}/{path}")
            assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_not_ready_without_a_node(w: World) -> None:
    await w.node.close()
    async with w.client(None) as http:
        answer = await http.get("/readyz")
        assert (answer.status_code, answer.json()["code"]) == (503, "node_unavailable")
        assert "no node answers" in answer.json()["detail"]
        assert answer.headers["retry-after"] == "1"
        assert (await http.get("/healthz")).status_code == 200


async def test_not_ready_while_the_only_node_is_starting(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def starting() -> list[dict[str, object]]:
        return [{"serving": False}]

    monkeypatch.setattr(w.services.nodes, "status", starting)
    async with w.client(None) as http:
        assert (await http.get("/readyz")).status_code == 503


async def test_not_ready_without_a_database(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away() -> int:
        raise StoreUnavailable("the database does not answer.")

    monkeypatch.setattr(w.services.functions, "revision", away)
    async with w.client(None) as http:
        answer = await http.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")


class _Page(HTMLParser):
    """Checks that tags nest, and collects what the page loads and links."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if found.get("id"):
            assert found["id"] not in self.ids, f"{found['id']} twice"
            self.ids.add(str(found["id"]))
        if tag == "a":
            self.links.add(str(found["href"]))
        if tag in ("script", "link", "img", "iframe") or found.get("src"):
            self.loads.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


async def test_the_documentation_shows_every_endpoint_and_loads_nothing(w: World) -> None:
    async with w.client(None) as http:
        answer = await http.get("/docs")
        document = (await http.get("/openapi.json")).json()
        assert (await http.get("/v1/openapi.json")).json() == document
        assert (await http.get("/")).headers["location"] == "/docs"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    page = _Page()
    page.feed(answer.text)
    page.close()
    assert (page.open, page.loads) == ([], [])
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.ids
    for path, item in document["paths"].items():
        for operation in item.values():
            assert operation["operationId"] in page.ids, path
    assert set(document["components"]["schemas"]) <= page.ids
