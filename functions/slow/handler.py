"""Takes the time it is asked for: `?seconds=2` waits, `?seconds=2&busy=1` computes."""

import time


def handler(event, context):
    query = event["queryStringParameters"]
    seconds = float(query.get("seconds", "1"))
    before = context.get_remaining_time_in_millis()
    print(f"working for {seconds} s of {before / 1000:.1f} s")
    if query.get("busy"):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass
    else:
        time.sleep(seconds)
    return {"seconds": seconds, "remaining_ms": context.get_remaining_time_in_millis()}
