"""The documentation page: the OpenAPI document as HTML, made here, with nothing loaded from anywhere.

Each operation shows its scope, parameters, body, answers, failures and a line of curl that works when pasted
(`$TOKEN` holds a token). Schemas are shown once, at the end, and linked.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

_STYLE = Path(__file__).with_name("docs.css")
_METHODS = ("put", "post", "get", "delete")
_REF = "#/components/schemas/"
_UPLOAD_FIELDS = "-F bundle=@bundle.zip -F config='{\"memory_mb\": 256}'"

Json = Mapping[str, Any]


def page(document: Json, base: str) -> str:
    """The whole page; `base` is the address under which the API answers, for the lines of curl."""
    operations = list(_operations(document))
    groups = {tag["name"]: tag.get("description", "") for tag in document.get("tags", [])}
    body = [_introduction(document, base)]
    for group, about in groups.items():
        body.append(f'<h2 id="{group}">{group.capitalize()}</h2><p>{_text(about)}</p>')
        body += [
            _operation(document, base, method, path, operation)
            for tag, method, path, operation in operations
            if tag == group
        ]
    body.append('<h2 id="schemas">Schemas</h2>')
    schemas = document["components"]["schemas"]
    body += [_schema_section(name, schemas[name]) for name in sorted(schemas)]
    return _frame(document["info"]["title"], _navigation(groups, operations), "\n".join(body))


def _frame(title: str, navigation: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} API</title><style>{_STYLE.read_text(encoding='utf-8')}</style></head>"
        f"<body><nav>{navigation}</nav><main>{body}</main></body></html>"
    )


def _operations(document: Json) -> Iterator[tuple[str, str, str, Json]]:
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                yield item[method]["tags"][0], method, path, item[method]


def _introduction(document: Json, base: str) -> str:
    info = document["info"]
    about = "".join(f"<p>{_text(paragraph)}</p>" for paragraph in info["description"].split("\n\n"))
    return (
        f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>{about}"
        f'<p>The document behind this page: <a href="/openapi.json">/openapi.json</a>. '
        f"Here the API answers at <code>{escape(base)}</code>.</p>"
    )


def _navigation(groups: Json, operations: list[tuple[str, str, str, Json]]) -> str:
    lines = []
    for group in groups:
        lines.append(f'<a class="group" href="#{group}">{group.capitalize()}</a>')
        for tag, method, _, operation in operations:
            if tag == group:
                summary = escape(operation["summary"])
                lines.append(f'<a href="#{operation["operationId"]}">{_badge(method)}{summary}</a>')
    lines.append('<a class="group" href="#schemas">Schemas</a>')
    return "".join(lines)


def _badge(method: str) -> str:
    return f'<b class="method {method}">{method.upper()}</b>'


def _operation(document: Json, base: str, method: str, path: str, operation: Json) -> str:
    description = "".join(f"<p>{_text(part)}</p>" for part in operation.get("description", "").split("\n\n"))
    return (
        f'<section id="{operation["operationId"]}"><h3>{escape(operation["summary"])}</h3>'
        f'<p class="address">{_badge(method)}<code>{escape(path)}</code>{_scope(operation)}</p>{description}'
        f"{_parameters(operation)}{_body(document, operation)}"
        f"<h4>Example</h4><pre>{escape(curl(document, base, method, path, operation))}</pre>"
        f"{_responses(operation)}</section>"
    )


def _scope(operation: Json) -> str:
    scopes = [scope for item in operation.get("security", []) for held in item.values() for scope in held]
    told = f"scope {', '.join(scopes)}" if scopes else "no token"
    return f'<span class="scope">{escape(told)}</span>'


def _parameters(operation: Json) -> str:
    rows = []
    for parameter in operation.get("parameters", []):
        schema = parameter["schema"]
        default = schema.get("default")
        extra = ", required" if parameter.get("required") else "" if default is None else f", default {default}"
        rows.append(
            f"<tr><td><code>{escape(parameter['name'])}</code><br><small>{parameter['in']}{escape(extra)}</small></td>"
            f"<td>{_kind(schema)}</td><td>{_text(parameter.get('description', ''))}</td></tr>"
        )
    return f"<h4>Parameters</h4><table>{''.join(rows)}</table>" if rows else ""


def _body(document: Json, operation: Json) -> str:
    content = operation.get("requestBody", {}).get("content", {})
    parts = []
    for media_type, described in content.items():
        parts.append(f"<p><code>{escape(media_type)}</code>: {_kind(described['schema'])}</p>")
        example = _example(document, described["schema"])
        if media_type == "application/json" and example is not None:
            parts.append(f"<pre>{escape(json.dumps(example, indent=2))}</pre>")
    return f"<h4>Body</h4>{''.join(parts)}" if parts else ""


def _responses(operation: Json) -> str:
    rows = []
    for status, response in sorted(operation["responses"].items()):
        content = response.get("content", {})
        kinds = " or ".join(_kind(item["schema"]) for item in content.values() if "schema" in item)
        types = ", ".join(content)
        rows.append(
            f'<tr class="s{status[0]}"><td><b>{status}</b></td><td>{_text(response["description"])}</td>'
            f"<td>{kinds}<br><small>{escape(types)}</small></td></tr>"
        )
    return f"<details><summary>Answers</summary><table>{''.join(rows)}</table></details>"


def _schema_section(name: str, schema: Json) -> str:
    rows = []
    for field, described in schema.get("properties", {}).items():
        required = "" if field in schema.get("required", []) else _default(described)
        rows.append(
            f"<tr><td><code>{escape(field)}</code><br><small>{escape(required)}</small></td>"
            f"<td>{_kind(described)}</td><td>{_text(described.get('description', ''))}</td></tr>"
        )
    table = f"<table>{''.join(rows)}</table>" if rows else f"<p>{_kind(schema)}</p>"
    example = (schema.get("examples") or [None])[0]
    shown = f"<pre>{escape(json.dumps(example, indent=2))}</pre>" if example is not None else ""
    return f'<section id="{name}"><h3>{name}</h3><p>{_text(schema.get("description", ""))}</p>{table}{shown}</section>'


def _default(schema: Json) -> str:
    return f"default {json.dumps(schema['default'])}" if "default" in schema else "optional"


def _kind(schema: Json) -> str:
    """A schema in a few words, as HTML."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_REF)
        return f'<a href="#{name}">{name}</a>'
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return " or ".join(_kind(item) for item in schema[several])
    if "enum" in schema:
        return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in schema["enum"])
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if kind == "object":
        values: Any = schema.get("additionalProperties") or next(iter(schema.get("patternProperties", {}).values()), {})
        return f"object of {_kind(values)}" if isinstance(values, Mapping) and values else "object"
    return escape(str(schema.get("format") or kind)) + _bounds(schema)


def _bounds(schema: Json) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    told = ""
    if "exclusiveMinimum" in schema:
        told = f" over {schema['exclusiveMinimum']}"
    if low is not None:
        told = f" from {low}"
    if high is not None:
        told += f" to {high}"
    if "maxLength" in schema:
        told += f", up to {schema['maxLength']} characters"
    if "pattern" in schema:
        told += f" <small><code>{escape(schema['pattern'])}</code></small>"
    return told


def _resolved(document: Json, schema: Json) -> Json:
    if "$ref" in schema:
        found: Json = document["components"]["schemas"][schema["$ref"].removeprefix(_REF)]
        return found
    return schema


def _example(document: Json, schema: Json) -> Any:
    return (_resolved(document, schema).get("examples") or [None])[0]


def curl(document: Json, base: str, method: str, path: str, operation: Json) -> str:
    """Lines of shell that make this call, one per way to send its body, with the examples of the document in it."""
    query = {}
    for parameter in operation.get("parameters", []):
        value = (parameter["schema"].get("examples") or [None])[0]
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", quote(str(value)))
        elif parameter.get("required"):
            query[parameter["name"]] = value
    address = base + path + (f"?{urlencode(query)}" if query else "")
    words = ["curl"] if method == "get" else ["curl", "-X", method.upper()]
    words.append(shlex.quote(address))
    if operation.get("security"):
        words.append('-H "Authorization: Bearer $TOKEN"')
    line = " ".join(words)
    bodies = [
        _UPLOAD_FIELDS if kind == "multipart/form-data" else _json_body(_example(document, described["schema"]))
        for kind, described in operation.get("requestBody", {}).get("content", {}).items()
    ]
    return "\n".join(f"{line} {body}" for body in bodies) or line


def _json_body(example: Any) -> str:
    return f"-H 'Content-Type: application/json' -d {shlex.quote(json.dumps(example))}"


def _text(markdown: str) -> str:
    """Text with `code` in it."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(markdown, quote=False))
