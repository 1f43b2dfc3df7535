"""The OpenAPI document says everything that users need, and its examples are true."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest

from headrace.control.app import create_app

DOCUMENT: dict[str, Any] = create_app(None).openapi()  # type: ignore[arg-type]
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
OPERATIONS = [
    pytest.param(path, method, operation, id=operation["operationId"])
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
]


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "components": DOCUMENT["components"]}


@pytest.mark.parametrize("name", [name for name, schema in SCHEMAS.items() if "examples" in schema])
def test_examples_are_valid(name: str) -> None:
    for example in SCHEMAS[name]["examples"]:
        jsonschema_rs.validate(resolved(SCHEMAS[name]), example)


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)
def test_every_body_and_answer_has_a_model_with_an_example(path: str, method: str, operation: dict[str, Any]) -> None:
    described = [("body", operation.get("requestBody", {}))]
    described += [(status, answer) for status, answer in operation["responses"].items() if status[0] == "2"]
    for which, part in described:
        for kind, content in part.get("content", {}).items():
            if kind in ("application/json", "multipart/form-data"):
                schema = SCHEMAS[content["schema"]["$ref"].rpartition("/")[2]]
                assert schema["description"], (which, kind)
                assert schema.get("examples") or kind == "multipart/form-data", (which, kind)
            else:
                assert content["example"], (which, kind)


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)
def test_every_failure_is_declared_as_a_problem(path: str, method: str, operation: dict[str, Any]) -> None:
    failures = {status: answer for status, answer in operation["responses"].items() if status[0] in "45"}
    for status, answer in failures.items():
        assert list(answer["content"]) == ["application/problem+json"], status
        for example in answer["content"]["application/problem+json"]["examples"].values():
            jsonschema_rs.validate(resolved(SCHEMAS["Problem"]), example["value"])
            assert str(example["value"]["status"]) == status
    expected = {"401", "403", "422", "500", "503"} if operation.get("security") else set()
    if "requestBody" in operation:
        expected |= {"400", "413", "415"}
    if method in ("get", "delete") and "{" in path:
        expected |= {"404"}
    assert expected <= set(failures)


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)
def test_every_parameter_and_field_of_a_body_is_described(path: str, method: str, operation: dict[str, Any]) -> None:
    assert operation["summary"]
    assert operation["description"]
    assert operation["tags"][0] in {tag["name"] for tag in DOCUMENT["tags"]}
    for parameter in operation.get("parameters", []):
        assert parameter["description"], parameter["name"]
    for content in operation.get("requestBody", {}).get("content", {}).values():
        for name, field in SCHEMAS[content["schema"]["$ref"].rpartition("/")[2]]["properties"].items():
            assert field["description"], name


def test_what_the_framework_says_of_itself_is_gone() -> None:
    assert not {"HTTPValidationError", "ValidationError"} & set(SCHEMAS)
