"""What OpenAPI says of endpoints beside what FastAPI reads off them."""

from typing import Any

from fastapi import FastAPI

from mla_ray.serving.schemas import HEALTH_PATH, IMAGE_TYPES, PROBLEM_JSON, Problem

MEANINGS = {
    400: "The body cannot be read as JSON.",
    401: "The bearer token is missing or wrong.",
    404: "Unknown language or image.",
    413: "The request is too large.",
    415: "The body is of another type.",
    421: "The server does not answer to that host name.",
    422: "The request is malformed, or the image cannot be read.",
    429: "Too many requests of one client; see Retry-After.",
    500: "The server failed.",
    503: "The server is at its limit; see Retry-After.",
    504: "No answer in time.",
    507: "The index is not written to now: its disk is full, or it is read-only.",
}

Responses = dict[int | str, dict[str, Any]]
"""As FastAPI takes them: OpenAPI's JSON by status."""


class DocumentedApp(FastAPI):
    """Adds to the schema what FastAPI cannot know: problems, and the token if there is one."""

    needs_token = False

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            schema = super().openapi()
            components = schema.setdefault("components", {})
            components.setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
            if self.needs_token:
                components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
                schema["security"] = [{"token": []}]
                schema["paths"][HEALTH_PATH]["get"]["security"] = []
        return self.openapi_schema or {}


def problem_responses(*statuses: int) -> Responses:
    """Responses that are problem details."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": MEANINGS[status], "content": {PROBLEM_JSON: {"schema": schema}}}
        for status in statuses
    }


def body(content: dict[str, Any]) -> dict[str, Any]:
    """A request body, by media type, that a route reads itself."""
    return {"requestBody": {"required": True, "content": content}}


def image_body() -> dict[str, Any]:
    schema = {"schema": {"type": "string", "format": "binary"}}
    return body(dict.fromkeys(IMAGE_TYPES, schema))
