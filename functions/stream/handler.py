"""An answer in pieces, as an async generator: `?count=5&every_ms=200`; `&fail_at=3` breaks off there."""

import asyncio


async def handler(event, context):
    query = event["queryStringParameters"]
    every_s = int(query.get("every_ms", "200")) / 1000
    fail_at = int(query.get("fail_at", "0"))
    try:
        for number in range(1, int(query.get("count", "5")) + 1):
            if number == fail_at:
                raise ValueError(f"piece {number} was to fail")
            yield f"piece {number}\n"
            await asyncio.sleep(every_s)
    finally:
        print("stream over")
