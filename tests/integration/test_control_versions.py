"""Uploads and versions over the control API."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from control_kit import HANDLER, World, world, zipped
from headrace.model import VersionState

URL = "/v1/functions/hello/versions"


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


def form(bundle: bytes = zipped({"handler.py": HANDLER}), config: Any = None) -> dict[str, Any]:
    parts: dict[str, Any] = {"files": {"bundle": ("bundle.zip", bundle, "application/zip")}}
    if config is not None:
        parts["data"] = {"config": config if isinstance(config, str) else json.dumps(config)}
    return parts


async def test_an_archive_becomes_a_version_in_a_new_function(w: World) -> None:
    answer = await w.http.post(URL, **form(config={"memory_mb": 256, "env": {"MODE": "x"}}))
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == "/v1/functions/hello/versions/1?namespace=default"
    version = answer.json()
    assert (version["number"], version["state"], version["built_at"]) == (1, "pending", None)
    assert version["config"]["memory_mb"] == 256
    assert version["config"]["env"] == {"MODE": "x"}
    assert version["size_bytes"] == len(HANDLER)
    assert (w.settings.code_dir(version["digest"]) / "handler.py").read_text() == HANDLER
    assert (await w.http.get(answer.headers["location"])).json() == version
    assert w.leftovers() == []


async def test_text_files_become_a_version(w: World) -> None:
    body = {"files": {"handler.py": HANDLER, "lib/words.py": "A = 'ä'\n"}, "config": {"timeout_s": 5}}
    answer = await w.http.post(URL, json=body)
    assert answer.status_code == 202, answer.text
    stored = w.settings.code_dir(answer.json()["digest"])
    assert (stored / "lib/words.py").read_text(encoding="utf-8") == "A = 'ä'\n"
    assert answer.json()["config"]["timeout_s"] == 5


async def test_the_same_again_is_the_version_that_exists(w: World) -> None:
    first = await w.http.post(URL, **form())
    again = await w.http.post(URL, json={"files": {"handler.py": HANDLER}})
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.json()["number"] == first.json()["number"]
    assert "location" not in again.headers
    other = await w.http.post(URL, **form(config={"memory_mb": 512}))
    assert (other.status_code, other.json()["number"]) == (202, 2), "another config is another version"


async def test_the_config_may_come_after_or_before_the_bundle_or_not_at_all(w: World) -> None:
    def part(name: str, content: bytes) -> bytes:
        head = f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n\r\n'
        return head.encode() + content + b"\r\n"

    bundle, config = part("bundle", zipped({"handler.py": HANDLER})), part("config", b'{"queue": 7}')
    for parts, queue in ((bundle + config, 7), (config + bundle, 7), (bundle, 100)):
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        answer = await w.http.post(URL, content=parts + b"--x--\r\n", headers=headers)
        assert answer.status_code in (200, 202), answer.text
        assert answer.json()["config"]["queue"] == queue


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"memory": 128}, "body.config.memory: this is not known here"),
        ({"memory_mb": "128"}, "body.config.memory_mb: "),
        ({"memory_mb": 1}, "greater than or equal to 32"),
        ({"env": {"HEADRACE_X": "1"}}, "names starting with HEADRACE_ are the platform's own"),
        ({"env": {"1x": "1"}}, "body.config.env.1x"),
        ("{", "in the part 'config'"),
        ('{"memory_mb": NaN}', "NaN"),
        ("[]", "body.config: "),
        ('{"queue": 1, "queue": 2}', "'queue' twice"),
    ],
)
async def test_a_bad_config_is_refused_and_nothing_stays(w: World, config: Any, told: str) -> None:
    answer = await w.http.post(URL, **form(config=config))
    assert answer.status_code in (400, 422)
    assert told in answer.json()["detail"], answer.text
    await assert_untouched(w)


async def assert_untouched(w: World) -> None:
    assert w.leftovers() == []
    assert (await w.http.get("/v1/functions")).json()["items"] == []
    code = w.settings.home / "code"
    assert not code.exists() or list(code.iterdir()) == []


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"files": {}}, "the bundle holds no files"),
        ({"config": {}}, "the bundle holds no files"),
        ({"files": {"a": "b"}, "config": {"image": "a:1"}}, "names an image, which runs as it is"),
        ({"config": {"image": "a:1", "handler": "a.b"}}, "body.config.handler: an image serves HTTP by itself"),
        ({"config": {"image": "a:1", "runtime": "node"}}, "body.config.image: this is for images only"),
        ({"files": {"handler.py": 3}}, "body.files.handler.py: "),
        ({"files": {"handler.py": HANDLER}, "conf": {}}, "body.conf: this is not known here"),
        ({"files": {"handler.py": HANDLER}, "config": None}, "body.config: "),
        ({"files": {"handler.py": "a\0b"}}, "NUL"),
        ({"files": {"../handler.py": HANDLER}}, "../handler.py"),
        ({"files": {"other.py": HANDLER}}, "handler"),
        ({"files": {"handler.py": "def handler(:\n"}}, "handler.py"),
        ([], "body: "),
    ],
)
async def test_bad_text_files_are_refused(w: World, body: Any, told: str) -> None:
    answer = await w.http.post(URL, json=body)
    assert answer.status_code == 422, answer.text
    assert told in answer.json()["detail"]
    await assert_untouched(w)


async def test_what_is_no_archive_is_refused_with_a_reason(w: World) -> None:
    answer = await w.http.post(URL, **form(b"not an archive"))
    assert (answer.status_code, answer.json()["code"]) == (422, "bundle_rejected")
    await assert_untouched(w)


@pytest.mark.parametrize(
    ("content", "options", "status", "told"),
    [
        (b"", "", 400, "names no boundary"),
        (b"garbage", "; boundary=x", 400, "not a multipart form"),
        (b"--x--\r\n", "; boundary=x", 422, "body.bundle: this is missing"),
        (b'--x\r\nContent-Disposition: form-data; name="bundle"\r\n\r\nPK', "; boundary=x", 400, "last boundary"),
        (b'--x\r\nContent-Disposition: form-data; name="b"\r\n\r\n1\r\n--x--\r\n', "; boundary=x", 422, "body.b: "),
        (b"--x\r\nX-Other: 1\r\n\r\n1\r\n--x--\r\n", "; boundary=x", 422, "send 'bundle' and 'config'"),
        (
            b'--x\r\nContent-Disposition: form-data; name="bundle"\r\n\r\n1\r\n' * 2 + b"--x--\r\n",
            "; boundary=x",
            422,
            "given twice",
        ),
        (b"--" + b"y" * 300, "; boundary=" + "y" * 300, 400, "not a multipart form"),
        (b"--x\r\n" + b"A: " + b"a" * 20_000 + b"\r\n\r\n", "; boundary=x", 400, "not a multipart form"),
    ],
)
async def test_malformed_forms_are_refused(w: World, content: bytes, options: str, status: int, told: str) -> None:
    headers = {"Content-Type": f"multipart/form-data{options}"}
    answer = await w.http.post(URL, content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert told in answer.json()["detail"]
    await assert_untouched(w)


async def test_an_upload_is_a_form_or_json(w: World) -> None:
    for headers in ({"Content-Type": "text/plain"}, {"Content-Type": "application/zip"}, {}):
        answer = await w.http.post(URL, content=zipped({"handler.py": HANDLER}), headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


async def test_versions_are_listed_newest_first(w: World) -> None:
    for number in range(1, 4):
        await w.ready(text=f"def handler(event, context):\n    return {number}\n")
    page = (await w.http.get(URL, params={"limit": 2})).json()
    assert [item["number"] for item in page["items"]] == [3, 2]
    rest = (await w.http.get(URL, params={"limit": 2, "cursor": page["next"]})).json()
    assert ([item["number"] for item in rest["items"]], rest["next"]) == ([1], None)
    assert page["items"][0]["state"] == "ready"
    assert page["items"][0]["built_at"] is not None


async def test_a_failed_version_says_why(w: World) -> None:
    await w.upload()
    await w.build(VersionState.FAILED, reason="handler.py has no 'handler'; define it.")
    shown = (await w.http.get(f"{URL}/1")).json()
    assert (shown["state"], shown["reason"]) == ("failed", "handler.py has no 'handler'; define it.")


async def test_the_build_log_is_text(w: World) -> None:
    await w.ready()
    answer = await w.http.get(f"{URL}/1/build-log")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text == "Nothing to install.\nLoaded in 3 ms.\n"


async def test_a_version_under_an_alias_cannot_be_deleted(w: World) -> None:
    await w.live()
    refused = await w.http.delete(f"{URL}/1")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert refused.json()["aliases"] == ["live"]
    await w.http.delete("/v1/functions/hello/aliases/live")
    assert (await w.http.delete(f"{URL}/1")).status_code == 204
    assert (await w.http.get(f"{URL}/1")).json()["state"] == "retired"
    assert await w.upload() == 2, "a number is never used again"


@pytest.mark.parametrize("number", ["2", "0", "-1", "x", "1.5", "99999999999999999999", "1%00"])
async def test_versions_that_are_not_there(w: World, number: str) -> None:
    await w.ready()
    answer = await w.http.get(f"{URL}/{number}")
    assert answer.status_code == (404 if number == "2" else 422), answer.text
    assert answer.headers["content-type"] == "application/problem+json"


async def test_too_many_uploads_at_once_are_refused(w: World) -> None:
    gate = w.services.uploads
    entered = []
    with pytest.raises(Exception, match="uploads already"):
        while True:
            place = gate.enter()
            place.__enter__()
            entered.append(place)
    answer = await w.http.post(URL, **form())
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "no_capacity", "1")
    for place in entered:
        place.__exit__(None, None, None)
    assert (await w.http.post(URL, **form())).status_code == 202
