"""schemathesis: requests made up from the OpenAPI document, valid ones and others; none may break the server."""

from collections import Counter
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import InvalidArgument, Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from sigrl_core.config.stages import ServeConfig
from tests.conftest import untrained_checkpoint
from tests.serving import app_of

pytestmark = pytest.mark.unit

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def api_schema(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("model")
    config = ServeConfig(
        checkpoint=str(untrained_checkpoint(folder / "checkpoint")),
        vocabularies=str(folder / "vocabularies"),
        max_labels=20,
        requests_per_minute=1_000_000,
        max_vocabularies=50,
    )
    return schemathesis.openapi.from_asgi("/openapi.json", app_of(config))


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_request_breaks_the_server(api_schema: Any, mode: GenerationMode) -> None:
    statuses = Counter[int]()
    for operation in (each.ok() for each in api_schema.get_all_operations()):

        @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def answered(case: schemathesis.Case) -> None:
            response = case.call()
            statuses[response.status_code] += 1
            case.validate_response(response, checks=CHECKS)

        try:
            answered()
        except (Unsatisfiable, InvalidArgument):  # nothing about it can be wrong
            assert mode is GenerationMode.NEGATIVE
    assert sum(statuses.values()) > 50
    print(dict(statuses))
