"""Publish and rollback under load: no request fails, and none that begins after the answer sees the old version."""

from __future__ import annotations

import threading
import time

import httpx

from stack import Headrace


def test_a_hundred_moves_under_load(platform: Headrace) -> None:
    for number in (1, 2):
        code = f"async def handler(event, context):\n    return '{number}'\n"
        platform.deploy("moved", {"handler.py": code}, {}, publish=number == 1)
    url = platform.url("moved")
    promised = [1]  # the version of the last answered move
    epoch = [0]  # odd while a move is under way
    wrong: list[str] = []
    calls = [0]
    over = threading.Event()

    def call() -> None:
        with httpx.Client(timeout=10) as client:
            while not over.is_set():
                began, expected = epoch[0], promised[0]
                try:
                    answer = client.get(url)
                except httpx.HTTPError as error:
                    wrong.append(repr(error))
                    continue
                calls[0] += 1
                if answer.status_code != 200:
                    wrong.append(f"{answer.status_code}: {answer.text}")
                elif began % 2 == 0 and epoch[0] == began and answer.text != str(expected):
                    wrong.append(f"version {answer.text} answered after {expected} was promised")

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for move in range(100):
        target = 2 if promised[0] == 1 else 1
        epoch[0] += 1
        if move % 2:
            answer = platform.ask("POST", "/functions/moved/rollback", {})
        else:
            answer = platform.ask("POST", "/functions/moved/publish", {"version": target})
        assert answer["traffic"] == {str(target): 100}
        promised[0] = target
        epoch[0] += 1
        time.sleep(0.01)
    over.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert calls[0] > 100
    history = platform.ask("GET", "/functions/moved/aliases/live/history?limit=100")["items"]
    assert [entry["generation"] for entry in history] == list(range(101, 1, -1))
