"""The first function: greets, in the caller's language."""

GREETINGS = {
    "cs": "Ahoj",
    "de": "Hallo",
    "el": "Γειά σου",
    "en": "Hello",
    "es": "Hola",
    "fr": "Bonjour",
    "hi": "नमस्ते",
    "is": "Halló",
    "it": "Ciao",
    "ja": "こんにちは",
    "nl": "Hallo",
    "pl": "Cześć",
    "pt": "Olá",
    "sv": "Hej",
    "sw": "Habari",
    "tr": "Merhaba",
    "uk": "Привіт",
    "zh": "你好",
}


async def handler(event, context):
    # `async` because it waits for nothing: it runs right in the loop. A plain `def` works as well, in a thread.
    languages = event.get("headers", {}).get("accept-language", "en")
    greeting = GREETINGS.get(languages[:2].lower(), "Hello")
    name = event.get("queryStringParameters", event).get("name")
    if name:
        print(f"greeting {name}")  # lands in the log of this invocation
    return f"{greeting}, {name or 'world'}! The water is running.\n"
