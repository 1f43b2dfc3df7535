"""Large bodies both ways: tells the size and digest of what it got, or answers with `?answer_mb=8`."""

import base64
import hashlib


def handler(event, context):
    answer = event["queryStringParameters"].get("answer_mb")
    if answer:
        return bytes(range(256)) * 4096 * int(answer)
    body = event["body"]
    data = base64.b64decode(body) if event["isBase64Encoded"] else body.encode()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
