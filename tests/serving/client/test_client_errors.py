"""Promises of what is raised where there is no answer."""

import pickle

import pytest

from mla_ray.serving.client_errors import (
    ApiError,
    Invalid,
    NotFound,
    Unauthorized,
)
from mla_ray.serving.schemas import (
    Problem,
)
from tests.serving.client.contract_server import HTML, Ask, Fault, Server, problem


@pytest.mark.parametrize(
    ("status", "kind"), [(404, NotFound), (422, Invalid), (413, ApiError), (500, ApiError)]
)
def test_a_problem_is_raised_as_it_was_told_and_not_asked_again(
    ask: Ask, server: Server, status: int, kind: type[ApiError]
) -> None:
    server.faults.append(problem(status, "it cannot\nbe\x1b[2J done"))
    with pytest.raises(ApiError) as caught:
        ask("search", "dog")
    assert type(caught.value) is kind
    assert caught.value.status == status
    assert caught.value.problem is not None
    assert caught.value.problem.type == "urn:mla-ray:problem:x"
    assert str(caught.value) == f"{status} Title: it cannot be [2J done"
    assert len(server.seen) == 1


def test_an_answer_that_is_no_problem_is_shown_shortly_and_without_control_characters(
    ask: Ask, server: Server
) -> None:
    server.faults.append(Fault(502, HTML))
    with pytest.raises(ApiError) as caught:
        ask("languages")
    assert caught.value.problem is None
    assert str(caught.value).startswith("502 Bad Gateway: <html> [31m502 xxx")
    assert len(str(caught.value)) < 600
    server.faults.append(Fault(500, '{"title": 1}', {"content-type": "application/problem+json"}))
    with pytest.raises(ApiError, match=r'^500 Internal Server Error: \{"title": 1\}$'):
        ask("languages")
    server.faults.append(Fault(500))
    with pytest.raises(ApiError, match=r"^500 Internal Server Error$"):
        ask("languages")


@pytest.mark.parametrize("body", [HTML, "", "{}", "[]"])
def test_success_of_some_other_server_is_no_answer(ask: Ask, server: Server, body: str) -> None:
    server.faults.append(Fault(200, body, {"content-type": "application/json"}))
    with pytest.raises(ApiError, match="200 not an answer of an mla-ray server to GET /v1/search"):
        ask("search", "dog")


def test_errors_cross_processes() -> None:
    told = Problem(type="urn:x", title="Unauthorized", status=401, detail="send it")
    again = pickle.loads(pickle.dumps(Unauthorized(401, told)))  # noqa: S301
    assert (again.status, again.problem) == (401, told)
    assert str(again).startswith("401 Unauthorized: send it")
