"""The shell shim: how programs are found and run, what they get, and what becomes of them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from headrace import wire
from shell_kit import loaded_shell, waiting_shell
from shim_kit import PATIENCE_S, Shim, http_header, logged


async def failure(home: Path, files: dict[str, str], **fields: Any) -> dict[str, Any]:
    """The header of the LOAD_FAILED that these files lead to; the instance is gone afterwards."""
    async with waiting_shell(home, files) as shim:
        frame = await shim.load(**fields)
        assert frame.type == wire.LOAD_FAILED, frame.header
        shim.link.close()
        assert (await shim.exited())[0] == 1
        return wire.loads(frame.header)


async def until(shim: Shim, path: str, text: str) -> None:
    """Wait until the file `path` beside the code holds `text`."""
    async with asyncio.timeout(PATIENCE_S):
        while not (shim.home / path).exists() or text not in (shim.home / path).read_text():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("file", "source", "handler"),
    [
        ("handler.sh", 'printf %s "$1"', "handler.handler"),
        ("handler.sh", '#!/bin/bash -e\nprintf %s "$1"', "handler.handler"),
        ("handler", '#!/bin/sh\nprintf %s "$1"', "handler.handler"),
        ("bin/api.sh", 'printf %s "$1"', "bin/api.handler"),
        ("handler", "#!/usr/bin/env -S perl -w\nprint shift", "handler.handler"),
    ],
)
async def test_every_kind_of_program(tmp_path: Path, file: str, source: str, handler: str) -> None:
    async with waiting_shell(tmp_path, {file: source}) as shim:
        assert (shim.hello["protocol"], shim.hello["runtime"], shim.hello["loaded"]) == (1, "shell", False)
        frame = await shim.load(handler=handler)
        assert (frame.type, wire.loads(frame.header)["kind"]) == (wire.LOADED, "handler"), frame.header
        assert (await shim.call("/")).body == b"handler"


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"other.sh": "true"}, "needs the file handler or handler.sh"),
        ({"handler.sh": "if true"}, "handler.sh: line 2: syntax error"),
        ({"handler": "echo hi"}, "chmod +x"),
    ],
)
async def test_a_failure_to_load_says_why(tmp_path: Path, files: dict[str, str], told: str) -> None:
    assert told in (await failure(tmp_path, files))["message"]


async def test_a_program_that_can_not_be_run_fails_its_calls(tmp_path: Path) -> None:
    async with loaded_shell(tmp_path, "#!/no/such/thing\n") as shim:
        error = (await shim.call("/")).error
        assert error is not None and "/no/such/thing can't be run: No such file" in error["message"]


async def test_the_environment_of_a_request(tmp_path: Path) -> None:
    source = "env -0 | perl -0 -ne 'chomp; print \"$_\\x01\"'"
    headers = [["host", "fn.example:7780"], ["x-a", "1"], ["x-a", "2"], ["proxy", "http://evil.example"]]
    headers += [["content-type", "text/plain"], ["x-latin", "gr\xfc\xdf"]]
    async with loaded_shell(tmp_path, source, env={"GREETING": "grüß dich"}) as shim:
        answer = await shim.call("/a%20b%0Ac%C3%BC", b"hi", q="x=%0A", m="POST", h=headers)
    found = dict(item.split(b"=", 1) for item in answer.body.split(b"\x01") if item)
    expected = {
        "GATEWAY_INTERFACE": "CGI/1.1", "REQUEST_METHOD": "POST", "SCRIPT_NAME": "/fn/case", "QUERY_STRING": "x=%0A",
        "PATH_INFO": "/a b%0Acü", "REQUEST_URI": "/fn/case/a%20b%0Ac%C3%BC?x=%0A", "CONTENT_TYPE": "text/plain",
        "CONTENT_LENGTH": "2", "REMOTE_ADDR": "192.0.2.7", "SERVER_NAME": "fn.example", "SERVER_PORT": "7780",
        "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_X_A": "1,2", "HTTP_HOST": "fn.example:7780", "GREETING": "grüß dich",
        "HEADRACE_INVOCATION": "inv-0", "HEADRACE_FUNCTION": "case", "HEADRACE_VERSION": "7",
    }  # fmt: skip
    assert {name: found[name.encode()].decode() for name in expected} == expected
    assert found[b"HTTP_X_LATIN"] == b"gr\xfc\xdf"
    assert not {b"HTTP_PROXY", b"HTTP_CONTENT_TYPE", b"HEADRACE_SOCKET", b"HEADRACE_CODE"} & set(found)


async def test_programs_of_a_layer_are_found(tmp_path: Path) -> None:
    layer = {"usr/bin/greet": "#!/bin/sh\necho hello", "usr/lib/x86_64-linux-gnu/libx": ""}
    async with waiting_shell(tmp_path, {"handler.sh": 'greet; echo "$LD_LIBRARY_PATH"'}, layer=layer) as shim:
        (shim.layer / "usr/bin/greet").chmod(0o755)
        await shim.load()
        hello, libraries = (await shim.call("/")).body.decode().split()
    assert hello == "hello" and f"{shim.layer}/usr/lib/x86_64-linux-gnu" in libraries.split(":")


async def test_a_request_reaches_the_program_as_it_arrives(tmp_path: Path) -> None:
    source = 'read -r line; echo "got $line"; sleep 0.05; read -r line; echo "got $line"; grep -o \'"body":null\' <&3'
    async with loaded_shell(tmp_path, source) as shim:
        stream = shim.link.open()
        stream.send(wire.CALL, http_header("/", more=True, m="POST"), b"one\n")
        assert (await stream.frame()).type == wire.HEAD
        assert (await stream.frame()).body == b"got one\n"
        stream.send(wire.BODY, None, b"two\n")
        stream.send(wire.END)
        assert (await stream.answer()).body == b'got two\n"body":null\n'


async def test_a_program_that_reads_slowly_holds_its_sender_up(tmp_path: Path) -> None:
    async with loaded_shell(tmp_path, f"until [ -e {tmp_path}/go ]; do sleep 0.01; done; wc -c") as shim:
        stream = shim.link.call("/", b"", then=b"x" * wire.WINDOW_SIZE, m="POST")
        with pytest.raises(TimeoutError):
            while True:  # what the pipe holds is granted, and no more
                frame = await stream.frame(within=0.3)
                assert frame.type == wire.WINDOW
        (tmp_path / "go").touch()
        assert (await stream.answer()).body.strip() == b"%d" % wire.WINDOW_SIZE


async def test_a_program_that_does_not_read_its_request_answers_all_the_same(tmp_path: Path) -> None:
    async with loaded_shell(tmp_path, "exec <&-; printf ok; sleep 0.1") as shim:
        answer = await shim.link.call("/", b"x" * 60_000, then=b"x" * 400_000, m="POST").answer()
        assert answer.body == b"ok"


async def test_a_sender_without_window_waits(tmp_path: Path) -> None:
    source = f"head -c 2000000 /dev/zero; touch {tmp_path}/written"
    async with loaded_shell(tmp_path, source) as shim:
        stream = shim.link.call("/")
        assert (await stream.frame()).type == wire.HEAD
        got = 0
        while got < wire.WINDOW_SIZE:
            got += len((await stream.frame()).body)
        with pytest.raises(TimeoutError):
            await stream.frame(within=0.2)
        assert got == wire.WINDOW_SIZE and not (tmp_path / "written").exists()
        stream.send(wire.WINDOW, {"n": 2_000_000})
        assert got + len((await stream.answer()).body) == 2_000_000


async def test_cancel_ends_the_program_and_its_children(tmp_path: Path) -> None:
    source = f"trap 'echo told >{tmp_path}/told; exit' TERM; (trap '' TERM; sleep 60) & echo $! >{tmp_path}/pid; wait"
    async with loaded_shell(tmp_path, source) as shim:
        stream = shim.link.call("/")
        await until(shim, "pid", "\n")
        child = int((tmp_path / "pid").read_text())
        stream.send(wire.CANCEL, {"why": "client"})
        await until(shim, "told", "told")
        shim.link.send(wire.PING)
        assert (await shim.link.instance.frame()).type == wire.PONG
        assert stream.waiting == 0
        assert Path(f"/proc/{child}").exists()  # it does not hear; it is the instance's now, as all that is left behind


async def test_what_a_program_leaves_running_holds_nothing_up(tmp_path: Path) -> None:
    async with loaded_shell(tmp_path, "sleep 60 & echo started $!") as shim:
        answer = await shim.call("/")
        assert answer.body.startswith(b"started ")
        os.kill(int(answer.body.split()[1]), signal.SIGKILL)


async def test_log_lines_levels_and_their_limit(tmp_path: Path) -> None:
    source = """
    case $PATH_INFO in
      /levels) printf 'plain\\n<4>careful\\n<7>detail\\n<6>one\\n<6>two\\nno end' >&2 ;;
      /flood) yes | head -c 600000 >&2; printf done ;;
    esac
    """
    async with loaded_shell(tmp_path, source) as shim:
        answer = await shim.call("/levels")
        found = [(log["l"], line) for log in answer.logs for line in log["text"].split("\n")]
        assert found == [
            ("ERROR", "plain"), ("WARNING", "careful"), ("DEBUG", "detail"), ("INFO", "one"), ("INFO", "two"),
            ("ERROR", "no end"),
        ]  # fmt: skip
        assert {log["s"] for log in answer.logs} == {"stderr"}
        answer = await shim.call("/flood")
        text = "\n".join(answer.lines())
        assert answer.body == b"done" and text.endswith("256 KiB; the rest of its output is dropped]")
        assert 256 << 10 <= len(text) < (256 << 10) + 200


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("shout hi", '"shout hi" is no command'),
        ("close 1005", "takes a code"),
        ("join", "is no command"),
        (f"join {'g' * 129}", "128 characters"),
        (f"close 1000 {'x' * 124}", "123 bytes"),
        (f"send {'x' * 1048577}", "the limit is 1048576"),
        ("send hi", "name one"),
    ],
)
async def test_a_wrong_command_fails_its_call(tmp_path: Path, line: str, told: str) -> None:
    async with waiting_shell(tmp_path, {"handler.sh": "cat line >&4; printf ok", "line": f"Socket: {line}\n"}) as shim:
        await shim.load()
        fields = {} if line == "send hi" else {"ev": "message", "c": "mine", "at": 1, "ip": "::1", "host": "h", "t": 1}
        answer = await shim.link.payload(b"", **fields).answer()
        assert answer.error is not None and told in answer.error["message"]


async def test_programs_that_never_stop_writing_hold_nobody_up(tmp_path: Path) -> None:
    source = """
    case $PATH_INFO in
      /log) exec yes >&2 ;;
      /notes) printf x && sleep 0.1 && exec yes x-a: b >&4 ;;
      /behind) yes & printf behind ;;
      *) printf ok ;;
    esac
    """
    async with loaded_shell(tmp_path, source) as shim:
        endless = [shim.link.call(path) for path in ("/log", "/notes")]
        assert b"behind" in (await shim.call("/behind")).body
        assert (await shim.call("/")).body == b"ok"
        for stream in endless:
            stream.send(wire.CANCEL, {"why": "timeout"})
        shim.link.send(wire.DRAIN)  # ends when both have
        assert (await shim.exited())[0] == 0


async def test_a_lost_node_finds_its_instance_again(tmp_path: Path) -> None:
    source = f"until [ -e {tmp_path}/go ]; do sleep 0.01; done; touch {tmp_path}/ended; echo late"
    async with loaded_shell(tmp_path, source) as shim:
        shim.link.call("/")
        await asyncio.sleep(0.05)
        shim.link.close()
        await shim.dialled()
        assert (shim.hello["loaded"], shim.hello["kind"]) == (True, "handler")
        fresh = shim.link.call("/")
        (tmp_path / "go").touch()
        assert (await fresh.answer()).body == b"late\n"
        await until(shim, "ended", "")


async def test_a_request_that_will_never_be_whole_ends_its_program(tmp_path: Path) -> None:
    source = f"trap 'echo told >{tmp_path}/told; exit' TERM; echo begun >&2; while read -r line; do :; done"
    async with loaded_shell(tmp_path, source) as shim:
        stream = shim.link.open()
        stream.send(wire.CALL, http_header("/", more=True, m="POST"), b"one\n")
        await logged(stream, "begun")
        shim.link.close()
        await until(shim, "told", "told")


async def test_a_long_payload_is_standard_input_only(tmp_path: Path) -> None:
    async with loaded_shell(tmp_path, "[ $(cat <&3) = null ] && cat") as shim:
        stream = shim.link.open()
        stream.send(wire.CALL, {"id": "inv-0", "d": 30_000, "more": True}, b'["')
        stream.send(wire.BODY, None, b"x" * 60_000)
        stream.send(wire.BODY, None, b"x" * 60_000 + b'"]')
        stream.send(wire.END)
        assert (await stream.answer()).json() == ["x" * 120_000]


async def test_drain_finishes_running_calls_and_exits(tmp_path: Path) -> None:
    async with loaded_shell(tmp_path, "echo begun >&2; sleep 0.2; head -c 300000 /dev/zero") as shim:
        stream = shim.link.call("/")
        await logged(stream, "begun")
        shim.link.send(wire.DRAIN)
        assert len((await stream.answer()).body) == 300_000
        assert await shim.exited() == (0, "")


async def test_noise_of_every_kind_is_survived(tmp_path: Path) -> None:
    dice = random.Random(7)
    types = [number for number in range(1, 30) if number != wire.DRAIN]
    headers = [
        b"",
        b"{}",
        b"[1]",
        b'{"id":1,"d":"x"}',
        b'{"n":"x"}',
        b'{"m":1,"h":7,"id":"a","d":1}',
        b'{"id":"b","d":9}',
    ]
    async with loaded_shell(tmp_path, "cat <&3") as shim:
        for _ in range(8):
            for _ in range(3):
                shim.link.raw(
                    wire.encode(dice.choice(types), dice.randrange(3), dice.choice(headers), dice.randbytes(20))
                )
            shim.link.raw(dice.randbytes(20))
            shim.link.close()
            await shim.dialled()
            assert shim.hello["loaded"] is True
        assert (await shim.link.payload(b"[1]").answer()).json() == [1]


async def test_many_calls_run_at_the_same_time(tmp_path: Path) -> None:
    source = f"echo >>{tmp_path}/begun; until [ -e {tmp_path}/go ]; do sleep 0.01; done; cat"
    async with loaded_shell(tmp_path, source, concurrency=12) as shim:
        streams = [shim.link.payload(json.dumps(number).encode()) for number in range(12)]
        await until(shim, "begun", "\n" * 12)
        (tmp_path / "go").touch()
        assert [(await stream.answer()).json() for stream in streams] == list(range(12))
