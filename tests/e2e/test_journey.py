"""A new user's first hour, through the command line and curl-like calls, in Docker containers."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import httpx

from stack import ROOT, Headrace


def _function(directory: Path, name: str, code: str) -> Path:
    home = directory / name
    home.mkdir(exist_ok=True)
    (home / "handler.py").write_text(code)
    return home


def test_deploy_change_roll_back_split(platform: Headrace, tmp_path: Path) -> None:
    home = _function(tmp_path, "greet", 'def handler(event, context):\n    return "one"\n')
    shown = platform.cli("deploy", str(home))
    assert "greet@1 is live" in shown
    url = platform.url("greet")
    assert httpx.get(url).text == "one"

    _function(tmp_path, "greet", 'def handler(event, context):\n    return "two"\n')
    platform.cli("deploy", str(home))
    answer = httpx.get(url)
    assert (answer.text, answer.headers["headrace-version"]) == ("two", "2")

    platform.cli("rollback", "greet")
    assert httpx.get(url).text == "one"
    assert httpx.get(f"{url}@2").text == "two"
    assert httpx.get(f"{url}@1").text == "one"
    platform.cli("publish", "greet", "2")
    assert httpx.get(url).text == "two"

    platform.cli("traffic", "greet", "1=90", "2=10")
    seen = Counter(httpx.get(url).text for _ in range(300))
    assert 5 <= seen["two"] <= 75

    platform.cli("publish", "greet", "1", "--alias", "stable")
    assert httpx.get(f"{url}@stable").text == "one"
    listed = json.loads(platform.cli("versions", "greet", "--json"))
    assert {version["number"]: version["state"] for version in listed["items"]} == {1: "ready", 2: "ready"}


def test_deploying_the_same_again_gives_the_same_version(platform: Headrace, tmp_path: Path) -> None:
    home = _function(tmp_path, "same", 'def handler(event, context):\n    return "x"\n')
    platform.cli("deploy", str(home))
    assert "same@1 is live" in platform.cli("deploy", str(home))


def test_what_happened_can_be_read(platform: Headrace, tmp_path: Path) -> None:
    home = _function(
        tmp_path,
        "troubled",
        "import logging\n"
        "def handler(event, context):\n"
        "    print('looking at', event['rawPath'])\n"
        "    logging.warning('careful')\n"
        "    raise ValueError('no such pet')\n",
    )
    platform.cli("deploy", str(home))
    answer = httpx.get(f"{platform.url('troubled')}/pets/7")
    assert answer.status_code == 500
    assert answer.headers["headrace-error"] == "function"
    problem = answer.json()
    assert problem["code"] == "function_error"
    assert "no such pet" not in answer.text, "the message of an exception is for the function's owner"

    id = answer.headers["headrace-invocation"]
    shown = platform.until(lambda: platform.cli("invocations", id, check=False), "no such pet")
    assert "looking at /pets/7" in shown
    assert "careful" in shown
    assert re.search(r'File ".*handler.py", line 5', shown)
    record = json.loads(platform.cli("invocations", id, "--json"))
    assert record["error"]["type"] == "ValueError"
    listed = json.loads(platform.cli("invocations", "troubled", "--json"))
    assert [item["id"] for item in listed["items"]] == [id]
    assert "careful" in platform.cli("logs", "troubled", "--level", "WARNING")
    assert "looking at" not in platform.cli("logs", "troubled", "--level", "WARNING")


def test_logs_follow_live(platform: Headrace, tmp_path: Path) -> None:
    home = _function(tmp_path, "chatty", "def handler(event, context):\n    print('said', event['rawPath'])\n")
    platform.cli("deploy", str(home))
    with platform.running_cli("logs", "chatty", "-f") as following:
        httpx.get(f"{platform.url('chatty')}/first")
        following.wait_for("said /first")
        httpx.get(f"{platform.url('chatty')}/second")
        following.wait_for("said /second")


def test_a_failed_build_says_why_and_changes_nothing(platform: Headrace, tmp_path: Path) -> None:
    home = _function(tmp_path, "fragile", 'def handler(event, context):\n    return "fine"\n')
    platform.cli("deploy", str(home))
    _function(tmp_path, "fragile", "import does_not_exist\ndef handler(event, context):\n    return 1\n")
    shown = platform.cli("deploy", str(home), check=False, code=1)
    assert "does_not_exist" in shown
    assert httpx.get(platform.url("fragile")).text == "fine"
    assert "only ready versions" in platform.cli("publish", "fragile", "2", check=False, code=1)
    _function(tmp_path, "fragile", "def handler(event, context)\n    return 1\n")
    shown = platform.cli("deploy", str(home), check=False, code=1)
    assert "handler.py" in shown
    assert "line 1" in shown


def test_thumbnail_with_pillow(platform: Headrace, tmp_path: Path) -> None:
    home = tmp_path / "thumbnail"
    shutil.copytree(ROOT / "functions" / "thumbnail", home)
    platform.cli("deploy", str(home))
    photo = _photo(400, 300)
    answer = httpx.post(f"{platform.url('thumbnail')}?width=80&height=60", content=photo, timeout=30)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    assert answer.content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = int.from_bytes(answer.content[16:20]), int.from_bytes(answer.content[20:24])
    assert (width, height) == (80, 60)
    assert httpx.post(platform.url("thumbnail"), content=b"not a photo").status_code == 400


def _photo(width: int, height: int) -> bytes:
    """An uncompressed TIFF-like photo that needs no library to make: a PPM gradient."""
    pixels = bytes(v for y in range(height) for x in range(width) for v in (x % 256, y % 256, (x + y) % 256))
    return b"P6 %d %d 255\n" % (width, height) + pixels


def test_delete_takes_it_away(platform: Headrace, tmp_path: Path) -> None:
    home = _function(tmp_path, "brief", 'def handler(event, context):\n    return "here"\n')
    platform.cli("deploy", str(home))
    assert httpx.get(platform.url("brief")).text == "here"
    platform.cli("delete", "brief", "--yes")
    answer = httpx.get(platform.url("brief"))
    assert (answer.status_code, answer.headers["headrace-error"]) == (404, "caller")
