"""Uniting the labels of several rows of one image: properties, and the rule for each pair of statements."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigrl_core.corpora.listing import ListedImage, label_evidence, label_states
from sigrl_core.data.label_states import states_of
from tests.conftest import vocabulary_of

pytestmark = pytest.mark.unit

NAMES = ("cat", "dog", "bird")
VOCABULARY = vocabulary_of(NAMES[:2], NAMES[2:])


@st.composite
def annotations(draw) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Labels and negatives of a row; a label is not in both."""
    marks = [draw(st.sampled_from(["present", "absent", "not listed"])) for _ in NAMES]
    labels, negatives = (
        tuple(name for name, mark in zip(NAMES, marks, strict=True) if mark == kind) for kind in ("present", "absent")
    )
    return draw(st.sampled_from([(None, None), (labels, None), (labels, negatives), (None, negatives)]))


def rows_of(drawn) -> list[ListedImage]:
    return [ListedImage("a.jpg", labels, negatives) for labels, negatives in drawn]


def united(rows: list[ListedImage], scope: Any = "all") -> list[int]:
    return states_of(np.bitwise_or.reduce(label_evidence(rows, VOCABULARY, scope), axis=0)).tolist()


@settings(deadline=None)
@given(st.lists(annotations(), min_size=1, max_size=5), st.randoms(), st.sampled_from(["all", "seen"]))
def test_order_repetition_and_grouping_do_not_matter(drawn, random, scope) -> None:
    rows = rows_of(drawn)
    expected = united(rows, scope)
    shuffled = rows + random.choices(rows, k=3)
    random.shuffle(shuffled)
    assert united(shuffled, scope) == expected
    cut = random.randint(0, len(rows))
    parts = [label_evidence(part, VOCABULARY, scope) for part in (rows[:cut], rows[cut:])]
    joined = [np.bitwise_or.reduce(part, axis=0) for part in parts]  # of no rows: no evidence
    assert states_of(joined[0] | joined[1]).tolist() == expected


@settings(deadline=None)
@given(st.lists(annotations(), min_size=1, max_size=5), st.sampled_from(["all", "seen"]))
def test_the_rule_label_by_label(drawn, scope) -> None:
    rows = rows_of(drawn)
    for label, state in zip(NAMES, united(rows, scope), strict=True):
        present = any(label in (row.labels or ()) for row in rows)
        absent = any(label in (row.negatives or ()) for row in rows)
        implied = any(row.labels is not None and row.negatives is None for row in rows)
        implied = implied and (scope == "all" or label != "bird")
        assert state == (0 if present and absent else 1 if present else -1 if absent or implied else 0)


@settings(deadline=None)
@given(annotations(), st.sampled_from(["all", "seen"]))
def test_one_row_alone_keeps_its_states(drawn, scope) -> None:
    rows = rows_of([drawn])
    assert united(rows, scope) == label_states(rows, VOCABULARY, scope)[0].tolist() == united(rows * 3, scope)


@settings(deadline=None)
@given(annotations(), st.randoms())
def test_a_row_split_over_many_rows_has_the_same_states(drawn, random) -> None:
    """One row a label, as in a long table; the parts in any order."""
    labels, negatives = drawn
    parts: list[ListedImage] = []
    for name in labels or ():
        parts.append(ListedImage("a.jpg", (name,), None if negatives is None else ()))
    for name in negatives or ():
        parts.append(ListedImage("a.jpg", None if labels is None else (), (name,)))
    parts.append(ListedImage("a.jpg", None if labels is None else (), None if negatives is None else ()))
    random.shuffle(parts)
    assert united(parts) == united(rows_of([drawn]))
