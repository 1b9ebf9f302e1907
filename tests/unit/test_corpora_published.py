"""Corpora as published; every fixture has the published layout with a few images."""

from pathlib import Path

import pytest

from sigrl_core.corpora import CORPORA, ListedImage, get_corpus, label_states
from sigrl_core.corpora.nus_wide import NUM_SEEN
from sigrl_core.errors import CorpusError

pytestmark = pytest.mark.unit


def write(root: Path, files: dict[str, str | None]) -> Path:
    """Writes files below a folder; removes those whose content is None."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(content.encode("latin-1"))
    return root


def fails(read_corpus, corpus: str, images: Path, annotations: Path, message: str) -> None:
    with pytest.raises(CorpusError, match=message) as caught:
        read_corpus(corpus, images, annotations)
    assert str(images.parent) in str(caught.value)  # the file, in full


# ---- Pascal VOC ----


def xml(name: str, *objects: str) -> str:
    elements = "".join(f"<object>{content}<bndbox><xmin>1</xmin></bndbox></object>" for content in objects)
    return f"<annotation>\n<folder>VOC2012</folder>\n<filename>{name}</filename>\n{elements}\n</annotation>\n"


VOC_LISTS = {
    "ImageSets/Main/trainval.txt": "2008_000002\n2008_000003\n2008_000007\n",
    "ImageSets/Main/val.txt": "2008_000003\n",
    "ImageSets/Main/cat_trainval.txt": "2008_000002  1\n2008_000003 -1\n2008_000007 -1\n",
    "ImageSets/Main/dog_trainval.txt": "2008_000002  0\n2008_000003  1\n2008_000007 -1\n",
    "ImageSets/Main/train_trainval.txt": "2008_000002 -1\n2008_000003  1\n2008_000007 -1\n",  # the class of that name
    "JPEGImages/2008_000002.jpg": "",
}
VOC_XML = {
    "Annotations/2008_000002.xml": xml(
        "2008_000002.jpg",
        "<name>cat</name><difficult>1</difficult><part><name>head</name></part>",
        "<name>cat</name><difficult>0</difficult>",
        "<name>dog</name><difficult>1</difficult>",
    ),
    "Annotations/2008_000003.xml": xml("2008_000003.jpg", "<name>train</name>", "<name>dog</name>"),
    "Annotations/2008_000007.xml": xml("2008_000007.jpg"),
}
VOC_STATES = [[1, 0, -1], [-1, 1, 1], [-1, -1, -1]]


def voc(root: Path, changed: dict[str, str | None]) -> tuple[Path, Path]:
    write(root, VOC_LISTS | VOC_XML | changed)
    return root / "JPEGImages", root / "ImageSets/Main/trainval.txt"


WITHOUT_LISTS = {name: None for name in VOC_LISTS if name.endswith("_trainval.txt")}


@pytest.mark.parametrize("from_lists", [True, False])
def test_voc(tmp_path, read_corpus, from_lists: bool) -> None:
    rows, vocabulary = read_corpus("voc", *voc(tmp_path, {} if from_lists else WITHOUT_LISTS))
    assert vocabulary.names == ["cat", "dog", "train"]
    assert [row.uri for row in rows] == ["2008_000002.jpg", "2008_000003.jpg", "2008_000007.jpg"]
    assert label_states(rows, vocabulary).tolist() == VOC_STATES
    assert rows[0] == ListedImage("2008_000002.jpg", ("cat",), ("train",))
    assert rows[1].negatives is None


def test_voc_reads_the_class_lists_of_its_own_set(tmp_path, read_corpus) -> None:
    images, _ = voc(tmp_path, {"ImageSets/Main/cat_val.txt": "2008_000003 1\n"})
    rows, vocabulary = read_corpus("voc", images, tmp_path / "ImageSets/Main/val.txt")
    assert (rows, vocabulary.names) == ([ListedImage("2008_000003.jpg", ("cat",))], ["cat"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"trainval": "2008_000002\n2008 000003\n"}, "line 2: found 2008_000003, expected 2008 000003 as in the list"),
        ({"trainval": "\n"}, "trainval.txt: no images"),
        ({"cat_trainval": "2008_000002 1\n2008_000003 2\n"}, "cat_trainval.txt, line 2: '2', expected 1, -1 or 0"),
        ({"cat_trainval": "2008_000002 1\n2008_000003\n"}, "cat_trainval.txt, line 2: expected `image 1|-1|0`"),
        ({"cat_trainval": "2008_000003 1\n"}, "cat_trainval.txt, line 1: found 2008_000003, expected 2008_000002"),
        ({"dog_trainval": "2008_000002 1\n"}, "dog_trainval.txt, it ends, expected 2008_000003"),
        ({"trainval": "2008_000002\n"}, "cat_trainval.txt, line 2: 2008_000003 is not in"),
    ],
)
def test_voc_errors_in_lists(tmp_path, read_corpus, changed: dict[str, str], message: str) -> None:
    files = voc(tmp_path, {f"ImageSets/Main/{name}.txt": content for name, content in changed.items()})
    fails(read_corpus, "voc", *files, message.replace("|", r"\|"))


def laughs() -> str:
    entities = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10 if n else "ha"}">' for n in range(9))
    return f"<!DOCTYPE annotation [{entities}]><annotation><filename>&a8;</filename></annotation>"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotation>\n<object>\n</annotation>", "2008_000003.xml: not valid XML .*line 3"),
        ("", "2008_000003.xml: not valid XML"),
        ("<html/>", "starts with <html>, expected <annotation>"),
        (xml("a.jpg", "<name>cat</name>", "<pose>Left</pose>"), "2008_000003.xml: object 2 has no <name>"),
        (xml("a.jpg", "<name>cat</name><difficult>x</difficult>"), "object 1 has <difficult> 'x', expected 0 or 1"),
        (laughs(), "2008_000003.xml: has a DOCTYPE"),
        (laughs().encode("utf-16").decode("latin-1"), "2008_000003.xml: has a DOCTYPE"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "has a DOCTYPE"),
    ],
)
def test_voc_errors_in_xml(tmp_path, read_corpus, content: str | None, message: str) -> None:
    files = voc(tmp_path, WITHOUT_LISTS | {"Annotations/2008_000003.xml": content})
    fails(read_corpus, "voc", *files, message)


def test_voc_without_any_annotations(tmp_path, read_corpus) -> None:
    write(tmp_path, {"JPEGImages/a.jpg": "", "ImageSets/Main/trainval.txt": "a\n"})
    files = tmp_path / "JPEGImages", tmp_path / "ImageSets/Main/trainval.txt"
    fails(read_corpus, "voc", *files, "Annotations: no such folder, nor cat_trainval.txt in")


# ---- NUS-WIDE ----

# 81 concepts, of which 75 are tags too, and 925 tags more, as published; spelt out are those that images have
CONCEPTS = ["airport", "birds", "fire"] + [f"concept{n:02d}" for n in range(78)]
TAGS = ["nature", "birds", "sky"] + [f"concept{n:02d}" for n in range(74)] + [f"tag{n:03d}" for n in range(923)]


def tag_line(*tags: str) -> str:
    return "".join(f"{int(tag in tags)}\t" for tag in TAGS) + "\n"


def truth(images: list[set[str]], concept: str) -> str:
    return "".join(f"{int(concept in labels)}\n" for labels in images)


def nus_wide(root: Path, changed: dict[str, str | None] | None = None) -> Path:
    """Writes three images; the second one is for testing."""
    labels = [{"airport"}, {"birds", "fire"}, set()]
    lines = ["actor\\0001_1.jpg\n", "birds\\0002_2.jpg\n", "zoo\\0003_3.jpg\n"]
    tags = [tag_line("nature", "birds"), tag_line("sky", "tag000", "concept00"), tag_line()]
    files: dict[str, str | None] = {
        "ConceptsList/Concepts81.txt": "\r\n".join(CONCEPTS) + "\r\n",
        "NUS_WID_Tags/TagList1k.txt": "\n".join(TAGS) + "\n",
        "ImageList/Imagelist.txt": "".join(lines),
        "ImageList/TrainImagelist.txt": lines[0] + lines[2],
        "ImageList/TestImagelist.txt": lines[1],
        "NUS_WID_Tags/AllTags1k.txt": "".join(tags),
        "NUS_WID_Tags/Train_Tags1k.dat": tags[0] + tags[2],
        "NUS_WID_Tags/Test_Tags1k.dat": tags[1],
        "Flickr/actor/0001_1.jpg": "",
    }
    for concept in CONCEPTS:
        files[f"Groundtruth/AllLabels/Labels_{concept}.txt"] = truth(labels, concept)
        files[f"Groundtruth/TrainTestLabels/Labels_{concept}_Train.txt"] = truth([labels[0], labels[2]], concept)
        files[f"Groundtruth/TrainTestLabels/Labels_{concept}_Test.txt"] = truth([labels[1]], concept)
    return write(root, files | (changed or {}))


def test_nus_wide_derives_seen_and_unseen_labels(tmp_path, read_corpus) -> None:
    root = nus_wide(tmp_path)
    _, vocabulary = read_corpus("nus_wide", root / "Flickr", root / "ImageList/TestImagelist.txt")
    assert vocabulary.subset("seen").names == ["nature", "sky", *(f"tag{n:03d}" for n in range(923))]
    assert vocabulary.subset("unseen").names == CONCEPTS
    assert (len(vocabulary.positions("seen")), len(vocabulary)) == (NUM_SEEN, 1006)


def test_nus_wide_has_concepts_of_test_images_alone(tmp_path, read_corpus) -> None:
    root = nus_wide(tmp_path)

    def states(name: str) -> dict[str, dict[str, int]]:
        rows, vocabulary = read_corpus("nus_wide", root / "Flickr", root / f"ImageList/{name}.txt")
        states_NC = label_states(rows, vocabulary)
        return {
            row.uri: dict(zip(vocabulary.names, map(int, line), strict=True))
            for row, line in zip(rows, states_NC, strict=True)
        }

    absent = dict.fromkeys([tag for tag in TAGS if tag not in CONCEPTS] + CONCEPTS, -1)
    unknown = dict.fromkeys(CONCEPTS, 0)
    second = {"birds/0002_2.jpg": absent | {"sky": 1, "tag000": 1, "birds": 1, "fire": 1}}
    assert states("TestImagelist") == second
    assert states("TrainImagelist") == {
        "actor/0001_1.jpg": absent | {"nature": 1} | unknown,
        "zoo/0003_3.jpg": absent | unknown,
    }
    assert states("Imagelist") == {
        "actor/0001_1.jpg": absent | {"nature": 1, "airport": 1},
        **second,
        "zoo/0003_3.jpg": absent,
    }


def test_nus_wide_81(tmp_path, read_corpus) -> None:
    root = nus_wide(tmp_path)
    rows, vocabulary = read_corpus("nus_wide_81", root / "Flickr", root / "ImageList/TrainImagelist.txt")
    assert vocabulary.subset("seen").names == CONCEPTS
    assert rows == [ListedImage("actor/0001_1.jpg", ("airport",)), ListedImage("zoo/0003_3.jpg", ())]


AIRPORT = "Groundtruth/TrainTestLabels/Labels_airport_Train.txt"
BIRDS = "Groundtruth/TrainTestLabels/Labels_birds_Train.txt"
TAGGED = "NUS_WID_Tags/Train_Tags1k.dat"


@pytest.mark.parametrize(
    ("corpus", "changed", "message"),
    [
        ("nus_wide_81", {AIRPORT: "1\nx\n"}, "Labels_airport_Train.txt, line 2: expected 0 or 1, found b'x'"),
        ("nus_wide_81", {BIRDS: "1\n"}, "Labels_birds_Train.txt: 1 lines, .*Labels_airport_Train.txt has 2"),
        ("nus_wide_81", {BIRDS: None}, "Labels_birds_Train.txt: no such file; unpack"),
        ("nus_wide_81", {"ConceptsList/Concepts81.txt": "cat\n"}, "Concepts81.txt: 1 concepts, expected the 81"),
        ("nus_wide_81", {"ImageList/TrainImagelist.txt": "a\\1.jpg\n"}, "TrainImagelist.txt: 1 images, but more"),
        ("nus_wide_81", {"ImageList/TrainImagelist.txt": "a\nb\nc\n"}, "TrainImagelist.txt, line 3: Groundtruth has 2"),
        (
            "nus_wide",
            {"NUS_WID_Tags/TagList1k.txt": "sky\n"},
            "TagList1k.txt: 1 tags, 1 of which are no concepts; expected the published",
        ),
        ("nus_wide", {TAGGED: tag_line() + "0\t1\t\n"}, "Train_Tags1k.dat, line 2: 2 numbers, expected one for each"),
        ("nus_wide", {TAGGED: tag_line() + "2" + tag_line()[1:]}, "Train_Tags1k.dat, line 2: expected 0 and 1 only"),
        ("nus_wide", {TAGGED: tag_line()}, "TrainImagelist.txt, line 2: NUS_WID_Tags has 1 images"),
        ("nus_wide", {TAGGED: 3 * tag_line()}, "TrainImagelist.txt: 2 images, but more"),
        ("nus_wide", {TAGGED: None}, "Train_Tags1k.dat: no such file"),
    ],
)
def test_nus_wide_errors(tmp_path, read_corpus, corpus: str, changed: dict, message: str) -> None:
    root = nus_wide(tmp_path, changed)
    fails(read_corpus, corpus, root / "Flickr", root / "ImageList/TrainImagelist.txt", message)


def test_nus_wide_requires_one_of_its_lists(tmp_path, read_corpus) -> None:
    root = nus_wide(tmp_path)
    fails(read_corpus, "nus_wide", root / "Flickr", root / TAGGED, "expected one of Imagelist.txt, TrainImagelist.txt")


# ---- Open Images ----

OPEN_IMAGES = {
    "class-descriptions.csv": '/m/01,Tree\n/m/02,"Sea, calm"\n/m/03,Bat\n/m/04,Bat\n/m/05,Dog\n',
    "train/labels.csv": (
        "ImageID,Source,LabelName,Confidence\n"
        "000a,verification,/m/01,1\n"
        "000a,verification,/m/02,0\n"
        "000a,crowdsource-verification,/m/03,1\n"
        "000b,verification,/m/05,0\n"
        "000b,verification,/m/04,1.0\n"
        "000b,crowdsource-verification,/m/04,0.0\n"
    ),
    "images/000a.jpg": "",
}


def test_open_images(tmp_path, read_corpus) -> None:
    write(tmp_path, OPEN_IMAGES)
    rows, vocabulary = read_corpus("open_images", tmp_path / "images", tmp_path / "train/labels.csv")
    assert vocabulary.subset("seen").names == ["Tree", "Sea, calm", "Bat (/m/03)", "Bat (/m/04)", "Dog"]
    assert rows == [
        ListedImage("000a.jpg", ("Tree", "Bat (/m/03)"), ("Sea, calm",)),
        ListedImage("000b.jpg", (), ("Dog",)),  # nothing of /m/04, on which two disagree
    ]
    assert label_states(rows, vocabulary).tolist() == [[1, -1, 1, 0, 0], [0, 0, 0, 0, -1]]


def test_open_images_with_chosen_classes(tmp_path, read_corpus) -> None:
    write(tmp_path, OPEN_IMAGES | {"classes-trainable.txt": "/m/05\n/m/01\n", "classes-unseen.txt": "/m/03\n"})
    header = "LabelName,DisplayName\n"  # as later versions have, with their name
    write(tmp_path, {"class-descriptions.csv": None})
    write(tmp_path, {"oidv7-class-descriptions.csv": header + OPEN_IMAGES["class-descriptions.csv"]})
    rows, vocabulary = read_corpus("open_images", tmp_path / "images", tmp_path / "train/labels.csv")
    assert [(label.name, label.group) for label in vocabulary.labels] == [
        ("Dog", "seen"),
        ("Tree", "seen"),
        ("Bat (/m/03)", "unseen"),
    ]
    assert rows == [ListedImage("000a.jpg", ("Tree", "Bat (/m/03)"), ()), ListedImage("000b.jpg", (), ("Dog",))]


HEADER = "ImageID,Source,LabelName,Confidence\n"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"train/labels.csv": "ImageID,LabelName\n"},
            "labels.csv, line 1: expected ImageID,Source,LabelName,Confidence",
        ),
        ({"train/labels.csv": HEADER}, "labels.csv: no lines after the header"),
        ({"train/labels.csv": HEADER + "000a,verification,/m/01\n"}, "labels.csv, line 2: 3 fields"),
        ({"train/labels.csv": HEADER + "000a,machine,/m/01,0.7\n"}, "line 2: Confidence '0.7', .* human-imagelabels"),
        ({"train/labels.csv": HEADER + "000a,v,/m/99,1\n"}, "line 2: LabelName '/m/99' is not in the class"),
        (
            {"train/labels.csv": HEADER + "b,v,/m/01,1\na,v,/m/01,1\nb,v,/m/02,1\nb,v,/m/03,1\na,v,/m/03,1\n"},
            "labels.csv, line 4: repeats an image that is listed before; sort by ImageID",
        ),
        ({"class-descriptions.csv": "/m/01,Tree\n/m/02\n"}, "class-descriptions.csv, line 2: expected a label's code"),
        ({"class-descriptions.csv": None}, "class-descriptions.csv: no such file"),
        ({"classes-trainable.txt": "/m/01\n/m/98\n"}, "classes-trainable.txt, line 2: '/m/98' is not in the class"),
        ({"classes-trainable.txt": "/m/01\n/m/01\n"}, "classes-trainable.txt: .*listed twice: Tree"),
    ],
)
def test_open_images_errors(tmp_path, read_corpus, changed: dict, message: str) -> None:
    write(tmp_path, OPEN_IMAGES)
    write(tmp_path, changed)
    fails(read_corpus, "open_images", tmp_path / "images", tmp_path / "train/labels.csv", message)


# ---- YOLO ----

YOLO = {
    "data.yaml": "path: .\ntrain: images/train\nnc: 3\nnames:\n  0: cat\n  2: bird\n  1: dog\n",
    "images/train/1.jpg": "x",
    "images/train/2.PNG": "xx",
    "images/val/3.jpg": "xxx",
    "labels/train/1.txt": "1 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1 0.1\n1 0.1 0.1 0.9 0.1 0.9 0.9\n",
    "labels/train/2.txt": "\n",
}


@pytest.mark.parametrize("names", ["data.yaml", "list.yaml", "classes.txt"])
def test_yolo(tmp_path, read_corpus, names: str) -> None:
    write(tmp_path, {**YOLO, "list.yaml": "names: [cat, dog, bird]\n", "classes.txt": "cat\ndog\nbird\n"})
    rows, vocabulary = read_corpus("yolo", tmp_path / "images", tmp_path / names)
    assert vocabulary.names == ["cat", "dog", "bird"]
    assert rows == [
        ListedImage("train/1.jpg", ("dog", "cat"), size=1),
        ListedImage("train/2.PNG", (), size=2),
        ListedImage("val/3.jpg", (), size=3),
    ]
    assert label_states(rows, vocabulary).tolist() == [[1, 1, -1], [-1, -1, -1], [-1, -1, -1]]
    rows, _ = read_corpus("yolo", tmp_path / "images/train", tmp_path / names)
    assert rows[0] == ListedImage("1.jpg", ("dog", "cat"), size=1)
    rows, _ = read_corpus("yolo", f"{tmp_path}/", tmp_path / names)
    assert rows[0] == ListedImage("images/train/1.jpg", ("dog", "cat"), size=1)


def test_yolo_with_text_files_beside_the_images(tmp_path, read_corpus) -> None:
    write(tmp_path, {"data/1.jpg": "x", "data/1.txt": "0 0.5 0.5 0.1 0.1", "obj.names": "cat\n"})
    assert read_corpus("yolo", tmp_path / "data", tmp_path / "obj.names")[0] == [ListedImage("1.jpg", ("cat",), size=1)]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"labels/train/1.txt": "0 1 1 1 1\n3 1 1 1 1\n"},
            "labels/train/1.txt, line 2: class 3, but there are 3 class names",
        ),
        ({"labels/train/1.txt": "0 1 1\n"}, "labels/train/1.txt, line 1: expected `class x y width height`"),
        ({"labels/train/1.txt": "cat 1 1 1 1\n"}, "labels/train/1.txt, line 1: expected"),
        (
            {"labels/train/1.txt": None, "labels/train/2.txt": None},
            "labels/val/3.txt: no such file, and no text file of another image",
        ),
        ({name: None for name in YOLO if name.startswith("images")}, "images: no image files"),
        ({"data.yaml": "names:\n  - cat\n - dog\n"}, "(?s)data.yaml: not valid YAML .*line 3"),
        ({"data.yaml": "names: !!python/object/apply:os.getcwd []\n"}, "(?s)data.yaml: not valid YAML"),
        ({"data.yaml": "names: [cat, no]\n"}, "data.yaml: a name is yes, no, on or off"),
        ({"data.yaml": "nc: 3\n"}, "data.yaml: no class names"),
        ({"data.yaml": "names: {0: cat, 2: dog}\n"}, "data.yaml: names must be numbered from 0"),
        ({"data.yaml": "names: [cat, dog, bird]\nnc: 4\n"}, "data.yaml: nc is not 3"),
        ({"data.yaml": "names: [cat, cat, bird]\n"}, r"data.yaml: .*listed twice: cat"),
        ({"data.yaml": "\0"}, "(?s)data.yaml: not valid YAML"),
    ],
)
def test_yolo_errors(tmp_path, read_corpus, changed: dict, message: str) -> None:
    write(tmp_path, YOLO)
    write(tmp_path, changed)
    fails(read_corpus, "yolo", tmp_path / "images", tmp_path / "data.yaml", message)


# ---- CUB ----

CUB = {
    "images.txt": "1 001.Albatross/A_1.jpg\n2 001.Albatross/A_2.jpg\n3 002.Auklet/B_1.jpg\n",
    "train_test_split.txt": "1 0\n2 1\n3 0\n",
    "attributes/attributes.txt": "1 has_bill_shape::curved_(up_or_down)\n2 has_wing_color::blue\n3 has_size::small\n",
    "attributes/image_attribute_labels.txt": (
        "1 1 0 3 27.7080\n1 2 1 2 27.7080\n1 3 1 4 1.5\n"
        "2 1 0 1 1.0\n2 2 0 1 0 9.2\n2 3 0 1 0 0 1.0\n"  # not visible, and the words too many that there are
        "3 1 1 4 1.0\n3 2 0 3 1.0\n3 3 0 1 1.0\n"
    ),
    "images/001.Albatross/A_1.jpg": "",
}


@pytest.mark.parametrize("place", ["attributes/attributes.txt", "attributes.txt", "../attributes.txt"])
def test_cub(tmp_path, read_corpus, place: str) -> None:
    root = write(tmp_path / "CUB_200_2011", CUB)
    (root / "attributes/attributes.txt").rename(root / place)
    rows, vocabulary = read_corpus("cub", root / "images", root)
    names = ["has_bill_shape::curved_(up_or_down)", "has_wing_color::blue", "has_size::small"]
    assert vocabulary.names == names
    assert rows == [
        ListedImage("001.Albatross/A_1.jpg", (names[1], names[2])),
        ListedImage("001.Albatross/A_2.jpg", ()),
        ListedImage("002.Auklet/B_1.jpg", (names[0],)),
    ]
    assert label_states(rows, vocabulary).tolist() == [[-1, 1, 1], [-1, -1, -1], [1, -1, -1]]
    assert read_corpus("cub_train", root / "images", root)[0] == rows[1:2]
    assert read_corpus("cub_test", f"{root}/images/", f"{root}/")[0] == [rows[0], rows[2]]


LABELS = "attributes/image_attribute_labels.txt"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({LABELS: "1 1 0 3 1.0\n1 2 1\n"}, "image_attribute_labels.txt, line 2: expected `image_id attribute_id"),
        (
            {LABELS: "1 1 0 3 1.0\n1 1 0 3 1.0\n"},
            "image_attribute_labels.txt, line 2: attribute 1 is unknown, or twice",
        ),
        ({LABELS: "1 4 0 3 1.0\n"}, "line 1: attribute 4 is unknown, or twice for image 1"),
        ({LABELS: "1 1 2 3 1.0\n"}, "line 1: is_present 2, certainty 3; expected 0 or 1, and 1 to 4"),
        ({LABELS: "1 1 0 3 1.0\n2 1 0 3 1.0\n"}, "line 1: image 1 has 1 of 3 attributes"),
        ({LABELS: "9 1 0 3 1.0\n"}, "line 1: image 9 is not in images.txt, or was listed before"),
        ({LABELS: "1 1 0 3 1\n1 2 0 3 1\n1 3 0 3 1\n"}, "image_attribute_labels.txt: ends at line 3 without image 2"),
        ({"images.txt": "1 a.jpg\n2\n"}, "images.txt, line 2: expected `image_id image_name`"),
        ({"attributes/attributes.txt": "1 a\n2 a\n"}, "attributes.txt: .*listed twice: a"),
        ({"attributes/attributes.txt": None}, "attributes/attributes.txt: no such file"),
        ({LABELS: None}, "image_attribute_labels.txt: no such file"),
    ],
)
def test_cub_errors(tmp_path, read_corpus, changed: dict, message: str) -> None:
    root = write(tmp_path / "CUB_200_2011", CUB)
    write(root, changed)
    fails(read_corpus, "cub", root / "images", root, message)


def test_cub_split_errors(tmp_path, read_corpus) -> None:
    root = write(tmp_path / "CUB_200_2011", CUB)
    write(root, {"train_test_split.txt": "1 x\n"})
    fails(read_corpus, "cub_train", root / "images", root, "train_test_split.txt, line 1: 'x', expected 0 or 1")
    write(root, {"train_test_split.txt": None})
    fails(read_corpus, "cub_test", root / "images", root, "train_test_split.txt: no such file")
    assert {"cub", "cub_train", "cub_test"} <= CORPORA.keys()
    assert get_corpus("cub")(str(root / "images"), str(root)).vocabulary is not None  # which needs no split


def test_yolo_images_of_unknown_endings(tmp_path: Path, make_image) -> None:
    """They are known by their content; files that are not taken are counted, files with labels are not."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    make_image(0).save(tmp_path / "images" / "a.jfif", "JPEG")
    (tmp_path / "images" / "notes.doc").write_text("a text")
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 1 1\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    listing = get_corpus("yolo")(str(tmp_path), str(tmp_path / "classes.txt"))
    assert [(image.uri, image.labels) for image in listing.images] == [("images/a.jfif", ("cat",))]
    assert listing.left_out == {".doc (not an image)": 1}
