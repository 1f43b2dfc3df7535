"""A chat: everybody in a room hears what one says. Rooms are groups of connections; the function keeps nothing.

Connect to /fn/chat?room=tea&name=ann and send text. An HTTP POST to /fn/chat?room=tea speaks to the room from outside.
"""

import json


def handler(event, context):
    kind = event["requestContext"].get("eventType", "HTTP")
    return {"CONNECT": enter, "MESSAGE": speak, "DISCONNECT": leave, "HTTP": announce}[kind](event, context)


def enter(event, context):
    query = event["queryStringParameters"]
    if not query.get("name"):
        return {"statusCode": 400, "body": "Say who you are: ?room=tea&name=ann\n"}
    room = query.get("room", "lobby")
    context.ws.join(room)
    context.ws.send({"from": "chat", "text": f"{query['name']} is here"}, group=room)
    return {"statusCode": 200}


def speak(event, context):
    """A message says where it goes, because the function keeps nothing: {"room": "tea", "from": "ann", "text": "hi"}."""
    try:
        message = json.loads(event["body"])
        room, sender, text = message["room"], message["from"], message["text"]
    except (ValueError, KeyError, TypeError):
        return {"error": "send JSON with room, from and text"}  # goes back to who sent it
    if text == "/bye":
        context.ws.close(1000, "bye")
        return None
    context.ws.send({"from": sender, "text": text}, group=room)
    return None


def leave(event, context):
    print("left with", event["requestContext"]["disconnectStatusCode"])


def announce(event, context):
    if event["requestContext"]["http"]["method"] != "POST":
        return {"statusCode": 405, "headers": {"allow": "POST"}}
    room = event["queryStringParameters"].get("room", "lobby")
    context.ws.send({"from": "outside", "text": event["body"]}, group=room)
    return {"statusCode": 202}
