"""Promises of the OpenAPI document."""

from tests.serving.app_server import Server


def test_openapi_describes_problems_examples_and_the_token(server: Server) -> None:
    schema = server.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        "/healthz",
        "/metrics",
        "/v1/captions",
        "/v1/collections",
        "/v1/embeddings/image",
        "/v1/embeddings/text",
        "/v1/images",
        "/v1/images/{image_id}",
        "/v1/languages",
        "/v1/search",
        "/v1/search/image",
    }
    assert "Problem" in schema["components"]["schemas"]
    assert schema["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    for path in schema["paths"].values():
        for operation in path.values():
            assert operation["summary"]
            assert operation["description"]
            assert "application/problem+json" in operation["responses"]["422"]["content"]
