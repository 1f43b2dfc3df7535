"""Takes memory and keeps it: `?mb=50` more on each call."""

kept = []


def handler(event, context):
    more = int(event["queryStringParameters"].get("mb", "50"))
    print(f"taking {more} MB more of {context.memory_limit_in_mb} MB")
    for _ in range(more):
        kept.append(b"\x01" * 1_000_000)  # touched, so really taken
    return {"kept_mb": len(kept)}
