"""The OpenAPI schema is kept: requests made from it meet no fault and no answer it does not tell.

Schemathesis makes them, good and bad ones, against the real app in this process. `make test` makes
the same ones every time, `make test-all` others each time, too, from a seed that it prints.
"""

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, seed, settings
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

SEED_VARIABLE = "MLA_TEST_SEED"
"""Draws the random requests of an earlier run again."""
TOKEN_HEADER = {"Authorization": "Bearer t"}
IMAGES = [f"image/{kind}" for kind in ("png", "jpeg", "webp", "gif", "bmp")]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
SETTINGS = settings(deadline=None, suppress_health_check=list(HealthCheck))


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


Check = Callable[[], None]


def test_the_schema_is_kept(schema: schemathesis.BaseSchema) -> None:
    """By the same requests in every process: Hypothesis draws them from the test's own source."""
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 15
    fixed = settings(SETTINGS, max_examples=10, derandomize=True, database=None)
    for operation in operations:
        fixed(requests_of(operation))()


@pytest.mark.slow
def test_the_schema_is_kept_by_random_requests(
    schema: schemathesis.BaseSchema, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = int(os.environ.get(SEED_VARIABLE) or secrets.randbits(64))
    with capsys.disabled():
        print(f"\n{SEED_VARIABLE}={drawn} draws the same requests again")
    random = settings(SETTINGS, max_examples=100, database=None)
    for operation in schema.get_all_operations():
        seed(drawn)(random(requests_of(operation.ok())))()


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
        assert detail.startswith("query/surprise: not a parameter of this endpoint")
        for parameter in operation.query:
            assert parameter.name in detail, operation.label


def requests_of(operation: schemathesis.APIOperation) -> Check:
    """Makes requests of an operation, such as its schema tells and others; checks the answers."""
    checks = list(CHECKS)
    if (
        operation.label != "POST /v1/captions"
    ):  # a wrong line there is told in the answer, not refused
        checks.append(negative_data_rejection)

    @given(operation.as_strategy() | operation.as_strategy(GenerationMode.NEGATIVE))
    def check(case: schemathesis.Case) -> None:
        case.call_and_validate(headers=TOKEN_HEADER, checks=checks)

    return check
