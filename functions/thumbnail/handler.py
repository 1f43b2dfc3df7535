"""POST a photo, get a PNG that fits into `width` x `height` (256 x 256 unless asked otherwise)."""

import base64
import io

from PIL import Image, ImageOps, UnidentifiedImageError

SIDES = range(1, 2049)
Image.MAX_IMAGE_PIXELS = 25_000_000  # Pillow warns above and refuses from twice as many, before it decodes


def handler(event, context):
    try:
        size = asked_size(event["queryStringParameters"])
        photo = body(event)
        png = thumbnail(photo, size)
    except ValueError as problem:
        return {"statusCode": 400, "body": f"{problem}\n"}
    print(f"{len(photo)} bytes in, {len(png)} bytes out")
    return {
        "statusCode": 200,
        "headers": {"content-type": "image/png"},
        "body": base64.b64encode(png).decode(),
        "isBase64Encoded": True,
    }


def asked_size(query):
    """Width and height in pixels; one alone stands for both."""
    given = {name: pixels(name, query[name]) for name in ("width", "height") if name in query}
    either = next(iter(given.values()), 256)
    return given.get("width", either), given.get("height", either)


def pixels(name, text):
    if not (text.isascii() and text.isdigit() and int(text) in SIDES):
        raise ValueError(f"{name}={text[:20]} is not a size: give whole pixels from {SIDES[0]} to {SIDES[-1]}.")
    return int(text)


def body(event):
    data = event["body"]
    photo = base64.b64decode(data) if event["isBase64Encoded"] else data.encode()
    if not photo:
        raise ValueError("The request has no body: send a photo, for example with curl --data-binary @photo.jpg")
    return photo


def thumbnail(photo, size):
    try:
        picture = Image.open(io.BytesIO(photo))
        picture.draft("RGB", (2 * size[0], 2 * size[1]))  # a JPEG is decoded not much larger than that
        ImageOps.exif_transpose(picture, in_place=True)
        picture.thumbnail(size)
    except UnidentifiedImageError:
        raise ValueError("The body is not an image: send a JPEG, PNG, WebP or GIF as it is, curl --data-binary @photo.jpg") from None
    except Image.DecompressionBombError:
        limit = 2 * Image.MAX_IMAGE_PIXELS // 1_000_000
        raise ValueError(f"The image is too large: send one of at most {limit} megapixels.") from None
    except (OSError, SyntaxError) as problem:
        raise ValueError(f"The image is damaged: {problem}.") from None
    if picture.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        picture = picture.convert("RGB")
    png = io.BytesIO()
    picture.save(png, "PNG", optimize=True)
    return png.getvalue()
