"""The OpenAPI schema is kept: requests made from it meet no fault and no answer it does not tell.

Schemathesis makes them, good and bad ones, against the real app in this process.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from mla_ray.model.native import Native
from mla_ray.serving.app import create_app
from mla_ray.serving.backend import LocalBackend
from mla_ray.serving.schemas import TOKEN_VARIABLE
from mla_ray.serving.settings import Settings
from tests.support.natives import MakePack

TOKEN_HEADER = {"Authorization": "Bearer t"}
IMAGES = [f"image/{kind}" for kind in ("png", "jpeg", "webp", "gif", "bmp")]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@schemathesis.serializer("application/x-ndjson", *IMAGES)
def as_it_is(context: schemathesis.SerializationContext, value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")


@pytest.fixture(scope="module")
def schema(
    native_folder: Path, make_pack: MakePack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[schemathesis.BaseSchema]:
    folder = tmp_path_factory.mktemp("contract")
    native = Native.load(str(native_folder))
    pack = make_pack("de")
    pack.card = pack.card.model_copy(update={"fingerprint": native.fingerprint})
    pack.save(folder / "packs" / "de")
    given = Settings(
        native=str(native_folder),
        packs=str(folder / "packs"),
        index=f"edge:{folder / 'index'}",
        pictures=str(folder / "pictures"),
        hosts=["testserver", "127.0.0.1", "localhost"],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TOKEN_VARIABLE, "t")
        backend = LocalBackend(given)
        app = create_app(backend, given)
        with TestClient(app):  # starts it and stops it
            yield schemathesis.openapi.from_asgi("/openapi.json", app, headers=TOKEN_HEADER)
        backend.close()


def test_the_schema_is_kept(schema: schemathesis.BaseSchema) -> None:
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 10
    for operation in operations:
        keeps_the_schema(operation)


def test_every_operation_refuses_what_its_schema_does_not_tell(
    schema: schemathesis.BaseSchema,
) -> None:
    operations = [found.ok() for found in schema.get_all_operations()]
    for operation in operations:
        case = operation.Case(
            path_parameters={"image_id": "x"} if "{" in operation.path else {},
            query={"surprise": "1"},
            body=b"",
            media_type="image/png",
        )
        answer = case.call(headers=TOKEN_HEADER)
        assert answer.status_code == 422, operation.label
        detail = answer.json()["detail"]
        assert detail.startswith("query/surprise: no parameter of this endpoint")
        for parameter in operation.query:
            assert parameter.name in detail, operation.label


def keeps_the_schema(operation: schemathesis.APIOperation) -> None:
    checks = list(CHECKS)
    if operation.path != "/v1/captions":  # a wrong line there is told in the answer, not refused
        checks.append(negative_data_rejection)

    @given(operation.as_strategy() | operation.as_strategy(GenerationMode.NEGATIVE))
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    def check(case: schemathesis.Case) -> None:
        case.call_and_validate(headers=TOKEN_HEADER, checks=checks)

    check()
