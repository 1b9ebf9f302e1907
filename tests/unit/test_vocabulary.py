import pytest

from sigrl_core.errors import StorageError, VocabularyError
from sigrl_core.records import load_vocabulary
from sigrl_core.vocabulary import Label, Vocabulary

pytestmark = pytest.mark.unit

MIXED = Vocabulary((Label(name="cat"), Label(name="okapi", split="unseen", prompts=("an okapi",)), Label(name="dog")))


def test_order_splits_and_positions() -> None:
    assert MIXED.names == ["cat", "okapi", "dog"]
    assert MIXED.index["dog"] == 2
    assert MIXED.positions("seen") == [0, 2]
    assert MIXED.subset("unseen").names == ["okapi"]
    assert len(Vocabulary(())) == 0


def test_json_round_trip_keeps_the_hash() -> None:
    again = Vocabulary.parse(MIXED.to_json(), "x")
    assert again == MIXED
    assert again.hash == MIXED.hash


def test_the_hash_depends_on_names_order_splits_and_texts() -> None:
    others = [
        Vocabulary.of(["cat", "okapi", "dog"]),
        Vocabulary(MIXED.labels[::-1]),
        Vocabulary((*MIXED.labels[:2], Label(name="Dog"))),
        Vocabulary((*MIXED.labels[:2], Label(name="dog", synonyms=("hound",)))),
    ]
    assert len({MIXED.hash, *(other.hash for other in others)}) == 5


def test_what_the_text_tower_reads() -> None:
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
        ("cat\ndog\ncat", "v.txt: .*listed .*: cat"),
        ('[{"label": "cat", "color": 1}]', "row 1: unknown key 'color'"),
        ('[{"label": "cat", "split": "new"}]', "expected one of seen, unseen"),
        ('[{"label": 3}]', 'text "label"'),
        ('[{"label": "cat"', "not valid JSON"),
        ('[{"label": "cat", "prompts": "x"}]', "prompts must be a list of texts"),
        ('[{"label": "cat", "synonyms": [" "]}]', "synonyms must be a list of texts"),
    ],
)
def test_what_is_no_label_list(text: str, message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        Vocabulary.parse(text, "v.txt")


def test_files(tmp_path) -> None:
    with pytest.raises(StorageError, match=r"missing.txt: no such file"):
        load_vocabulary(str(tmp_path / "missing.txt"))
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(VocabularyError, match="UTF-8"):
        load_vocabulary(str(tmp_path / "latin.txt"))
    (tmp_path / "good.txt").write_text("café\n", encoding="utf-8")
    assert load_vocabulary(str(tmp_path / "good.txt")).names == ["café"]
