"""Calls that run ahead in threads."""

import pytest

from sigrl_core.io.prefetch import prefetch, prefetch_map

pytestmark = pytest.mark.unit


def test_results_are_in_order_and_few_calls_run_ahead() -> None:
    called: list[int] = []

    def call(number: int) -> int:
        called.append(number)
        if number == 7:
            raise ValueError("seven")
        return 10 * number

    for in_flight in (1, 3):
        called.clear()
        results = prefetch_map(call, iter(range(100)), in_flight)
        assert [next(results) for _ in range(3)] == [0, 10, 20]
        results.close()
        assert len(called) <= 3 + in_flight
        called.clear()
        with pytest.raises(ValueError, match="seven"):
            list(prefetch_map(call, iter(range(100)), in_flight))
        assert max(called) < 7 + in_flight


def test_prefetch_keeps_order_and_raises_errors() -> None:
    def items():
        yield from range(5)
        raise ValueError("five")

    received: list[int] = []
    with pytest.raises(ValueError, match="five"):
        received.extend(prefetch(items()))
    assert received == list(range(5))
    assert list(prefetch(iter([]))) == []
