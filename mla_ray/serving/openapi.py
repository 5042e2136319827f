"""Additions to the OpenAPI document that FastAPI generates."""

from typing import Any

from fastapi import FastAPI

from mla_ray.serving.schemas import HEALTH_PATH, IMAGE_TYPES, PROBLEM_JSON, Problem

MEANINGS = {
    400: "The body cannot be read as JSON.",
    401: "The bearer token is missing or wrong.",
    404: "The server does not have this language or image.",
    413: "The request is too large.",
    415: "The endpoint does not accept this media type.",
    421: "The server does not answer to this host name.",
    422: "The request is malformed, or the image cannot be read.",
    429: "The client sent too many requests. The header Retry-After says when to try again.",
    500: "The server failed.",
    503: "The server is overloaded, or a language pack or the index is not available. Retry-After "
    "says when to try again.",
    504: "The server did not finish the request in time.",
    507: "The index cannot be written: its disk is full, or it is read-only.",
}

Responses = dict[int | str, dict[str, Any]]
"""OpenAPI response objects by status, as FastAPI expects them."""


class DocumentedApp(FastAPI):
    """FastAPI app whose schema also has the `Problem` model and, if required, the bearer token."""

    needs_token = False

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document. It is generated once."""
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
    """Return response objects with problem details for these statuses."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": MEANINGS[status], "content": {PROBLEM_JSON: {"schema": schema}}}
        for status in statuses
    }


def body(content: dict[str, Any]) -> dict[str, Any]:
    """Describe a request body, by media type, that a route reads without FastAPI."""
    return {"requestBody": {"required": True, "content": content}}


def image_body() -> dict[str, Any]:
    """Describe a request body that is an image file."""
    schema = {"schema": {"type": "string", "format": "binary"}}
    return body(dict.fromkeys(IMAGE_TYPES, schema))
