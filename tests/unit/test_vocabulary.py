import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigrl_core.errors import StorageError, VocabularyError
from sigrl_core.labels.vocabulary import Label, Vocabulary

pytestmark = pytest.mark.unit

MIXED = Vocabulary((Label(name="cat"), Label(name="okapi", group="unseen", prompts=("an okapi",)), Label(name="dog")))


def test_order_groups_and_positions() -> None:
    assert MIXED.names == ["cat", "okapi", "dog"]
    assert MIXED.index["dog"] == 2
    assert MIXED.positions("seen") == [0, 2]
    assert MIXED.subset("unseen").names == ["okapi"]
    assert len(Vocabulary(())) == 0


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5).map(str.strip).filter(len)
LABEL = st.builds(
    Label,
    name=TEXT,
    group=st.sampled_from(["seen", "unseen"]),
    prompts=st.lists(TEXT, max_size=2).map(tuple),
    synonyms=st.lists(TEXT, max_size=2).map(tuple),
)


@given(st.lists(LABEL, min_size=1, unique_by=lambda label: label.name))
def test_every_vocabulary_survives_json(labels: list[Label]) -> None:
    vocabulary = Vocabulary(tuple(labels))
    again = Vocabulary.parse(vocabulary.to_json(), "v.json")
    assert again == vocabulary
    assert again.hash == vocabulary.hash
    lines = "\n".join(json.dumps(row) for row in vocabulary.to_rows())
    assert Vocabulary.parse(lines, "v.jsonl") == vocabulary


def rows_of(values: st.SearchStrategy) -> st.SearchStrategy:
    keys = st.sampled_from(["label", "split", "prompts", "synonyms", "other"])
    return st.lists(values, max_size=4) | st.dictionaries(keys, values, max_size=4)


@given(st.recursive(st.none() | st.integers() | st.floats() | st.text() | st.just("seen"), rows_of, max_leaves=8))
def test_any_json_is_read_or_refused(value) -> None:
    """The parser raises no other error, and what it reads survives writing."""
    with suppress(VocabularyError):
        vocabulary = Vocabulary.parse(json.dumps(value), "v.json")
        assert Vocabulary.parse(vocabulary.to_json(), "v.json").hash == vocabulary.hash


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(VocabularyError):
        assert all(name.strip() == name for name in Vocabulary.parse(text, "v.txt").names)


def test_json_round_trip_keeps_the_hash() -> None:
    again = Vocabulary.parse(MIXED.to_json(), "x")
    assert again == MIXED
    assert again.hash == MIXED.hash


def test_the_hash_depends_on_names_order_groups_and_texts() -> None:
    variants = [
        Vocabulary.from_names(["cat", "okapi", "dog"]),
        Vocabulary(MIXED.labels[::-1]),
        Vocabulary((*MIXED.labels[:2], Label(name="Dog"))),
        Vocabulary((*MIXED.labels[:2], Label(name="dog", synonyms=("hound",)))),
    ]
    assert len({MIXED.hash, *(variant.hash for variant in variants)}) == 5


def test_texts_for_the_text_tower() -> None:
    templates = ("a {}", "a photo of a {}")
    assert Label(name="dog").texts(templates) == ("a dog", "a photo of a dog")
    hound = Label(name="dog", synonyms=("hound",))
    assert hound.texts(templates) == ("a dog", "a photo of a dog", "a hound", "a photo of a hound")
    described = Label(name="dog", prompts=("a barking animal",), synonyms=("hound",))
    assert described.texts(("{}!",)) == ("a barking animal", "hound!")
    assert Vocabulary.parse(Vocabulary((described,)).to_json(), "x").labels == (described,)


def test_text_files() -> None:
    assert Vocabulary.parse("\ufeffcat\r\n\n  dog  \n", "x").names == ["cat", "dog"]
    assert Vocabulary.parse('{"label": "cat"}\n{"label": "dog", "split": "unseen"}', "x").positions("unseen") == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "v.txt: no labels found"),
        ("[]", "v.txt: no labels found"),
        ("[" * 100_000, "not valid JSON"),
        (r'[{"label": "\ud800"}]', 'text "label"'),
        ('[{"label": "cat", "split": ["seen"]}]', "expected one of seen, unseen"),
        ("cat\ndog\ncat", "v.txt: .*listed .*: cat"),
        ('[{"label": "cat", "color": 1}]', "row 1: unknown key 'color'"),
        ('[{"label": "cat", "split": "new"}]', "expected one of seen, unseen"),
        ('[{"label": 3}]', 'text "label"'),
        ('[{"label": "cat"', "not valid JSON"),
        ('[{"label": "cat", "prompts": "x"}]', "prompts must be a list of texts"),
        ('[{"label": "cat", "synonyms": [" "]}]', "synonyms must be a list of texts"),
    ],
)
def test_malformed_vocabularies(text: str, message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        Vocabulary.parse(text, "v.txt")


def test_files(tmp_path) -> None:
    with pytest.raises(StorageError, match=r"missing.txt: no such file"):
        Vocabulary.load(str(tmp_path / "missing.txt"))
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(VocabularyError, match="UTF-8"):
        Vocabulary.load(str(tmp_path / "latin.txt"))
    (tmp_path / "good.txt").write_text("café\n", encoding="utf-8")
    assert Vocabulary.load(str(tmp_path / "good.txt")).names == ["café"]
