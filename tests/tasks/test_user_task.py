"""Tests of the tasks of the user's own files: guessed columns and kinds, labels, and wrong data."""

import json
import pickle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roberta_jax.errors import NotFoundError, UsageError
from roberta_jax.tasks import metrics
from roberta_jax.tasks.examples import ChoiceExample, TextExample, TokenExample
from roberta_jax.tasks.readers.user_columns import Columns
from roberta_jax.tasks.user_task import open_user_data, user_task

REVIEWS = "review,stars,author\n" + "".join(
    f'"A film of {i} minutes, mostly good",{i % 5 + 1},Ann\n' for i in range(30)
)


class Files:
    """Writes files and opens them as a task."""

    def __init__(self, folder):
        self.folder = folder

    def write(self, name, content):
        path = self.folder / name
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_text(content, encoding="utf-8")
        return path

    def open(self, train, validation=None, test=None, **options):
        format = "csv" if isinstance(train, str) else "jsonl"
        paths = [
            None if content is None else self.write(f"{name}.{format}", content)
            for name, content in [("train", train), ("validation", validation), ("test", test)]
        ]
        return open_user_data(format, *paths, **options)

    def examples(self, train, split="train", **options):
        task = self.open(train, **options).task
        return list(task.reader(self.folder / task.files[split][0], task, split))

    def error(self, *args, **options):
        with pytest.raises(UsageError) as caught:
            self.open(*args, **options)
        assert len(str(caught.value)) < 600
        return str(caught.value)


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def texts(label, values, name="text"):
    return f"{name},{label}\n" + "".join(f"a text of {i} words,{v}\n" for i, v in enumerate(values))


def test_one_label(files):
    opened = files.open(REVIEWS)
    task = opened.task
    assert (task.name, task.kind, task.labels) == ("csv", "classification", tuple("12345"))
    assert (task.fields, task.label_field, task.metrics[0]) == (("review",), "stars", "accuracy")
    examples = list(task.reader(files.folder / task.files["train"][0], task, "train"))
    assert len(examples) == 30
    assert examples[7] == TextExample("7", "A film of 7 minutes, mostly good", None, "3")
    assert opened.description.splitlines() == [
        "train: 30 examples of train.csv",
        "kind: classification; text: review; label: stars (5 labels: 1 (6), 2 (6), 3 (6), 4 (6), "
        "5 (6)); id: the number of the row",
        "columns that are not used: author",
        "to change this: --config.data.text_column=...; likewise pair_column, label_column, "
        "id_column, kind, labels",
    ]


def test_the_reader_and_its_columns_can_be_stored(files):
    opened = files.open(REVIEWS)
    columns = Columns.from_json(json.loads(json.dumps(opened.columns.to_json())))
    assert columns == opened.columns
    task = user_task("csv", columns, opened.task.labels)
    path = files.folder / "train.csv"
    expected = list(opened.task.reader(path, opened.task, "train"))
    for each in (task, pickle.loads(pickle.dumps(opened.task))):
        assert list(each.reader(path, each, "train")) == expected


@pytest.mark.parametrize(
    ("values", "kind", "labels"),
    [
        (["neg", "pos", "pos"], "classification", ("neg", "pos")),
        ([10, 9, 10, 9], "classification", ("9", "10")),
        ([-1, 1, 0, 1, 0, -1], "classification", ("-1", "0", "1")),
        (["true", "false"], "classification", ("false", "true")),
        ([1.5, 2, 3], "regression", ()),
        (range(30), "regression", ()),
        ([1, 2, 3, 4], "regression", ()),  # every number once
        ([*range(21)] * 3, "regression", ()),
        ([*range(20)] * 3, "classification", tuple(map(str, range(20)))),
        (["1e-3", "2e2"], "regression", ()),
        (["a|b", "b", ""], "multi_label", ("a", "b")),
        (['"a,b"', '"b, c"', "a"], "multi_label", ("a", "b", "c")),
        (['"Food, Drink"', "Books"], "classification", ("Books", "Food, Drink")),
        (['"[""a"", ""b""]"', "[]", '"[""b""]"'], "multi_label", ("a", "b")),
    ],
)
def test_the_kind_follows_from_the_labels(files, values, kind, labels):
    options = {"kind": "multi_label"} if "[]" in list(values) else {}
    task = files.open(texts("label", values), **options).task
    assert (task.kind, task.labels) == (kind, labels)


@pytest.mark.parametrize(
    ("columns", "text", "pair", "label"),
    [
        ("premise,hypothesis,gold_label", "premise", "hypothesis", "gold_label"),
        ("Sentence1,Sentence2,Label", "Sentence1", "Sentence2", "Label"),
        ("label,text", "text", None, "label"),
        ("id,content,category", "content", None, "category"),
        ("title,body,target", "body", None, "target"),
        ("first,second,label", "first", "second", "label"),
        ("anything,which", "anything", None, "which"),
        ("text,summary,label,score", "text", None, "label"),
        ("question1,question2,id,label,topic", "question1", "question2", "label"),
    ],
)
def test_columns_are_guessed_from_names_and_contents(files, columns, text, pair, label):
    names = columns.split(",")
    short = {"label", "gold_label", "category", "target", "which", "score", "topic"}

    def cell(name, i):
        return str(i) if name == "id" else "xy"[i % 2] if name.lower() in short else f"a b c {i}"

    rows = [",".join(cell(name, i) for name in names) for i in range(6)]
    opened = files.open("\n".join([columns, *rows]))
    assert (opened.columns.text, opened.columns.pair) == (text, pair)
    assert opened.columns.label == (label,)
    assert opened.columns.id == ("id" if "id" in names else None)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (
            "title words,body words,third words,label\na b c,d e f,g h i,x\nj k l,m n o,p q r,y\n",
            ["holds the text", "'title words', 'body words', 'third words' could"],
        ),
        ("review,comment,label\na,b,x\nc,d,y\n", ["the text", "--config.data.text_column=COLUMN"]),
        ("text,score,rating\na b,1,2\nc d,2,1\n", ["the label", "'score', 'rating' could"]),
        (
            "text,toxic,rude\na b c,0,1\nc d e,1,1\n",
            ["the label", "--config.data.label_column=toxic,rude"],
        ),
        ("text,other\na b c,c d e\nf g h,h i j\n", ["the label", "none looks like it"]),
        ("a,label\n1,x\n2,y\n", ["the text", "none looks like it"]),
        (texts("label", [f"name {i}" for i in range(40)]), ["40 different values", "too many"]),
        (texts("label", [f"n{i}" for i in range(1500)]), ["over 1000 different values"]),
    ],
)
def test_unclear_columns_are_listed(files, content, parts):
    message = files.error(content)
    for part in [*parts, "train.csv"]:
        assert part in message


def test_options_decide(files):
    content = "title,body,score,key\nx y z,a b c,1,k1\nu v w,d e f,2,k2\nr s t,g h i,2,k3\n"
    options = {
        "text_column": "body",
        "pair_column": "title",
        "label_column": "score",
        "id_column": "key",
        "kind": "regression",
    }
    assert files.examples(content, **options)[1] == TextExample("k2", "d e f", "u v w", 2.0)
    opened = files.open(content, **options)
    assert opened.task.label_scale == 2
    assert "numbers from 1 to 2, divided by 2" in opened.description
    classes = files.examples(content, **{**options, "kind": "classification", "labels": "2,1"})
    assert [each.label for each in classes] == ["1", "2", "2"]


def test_numbers_of_given_labels(files):
    content = texts("label", [0, 1, 1])
    opened = files.open(content, labels=["neg", "pos"])
    assert opened.task.labels == ("neg", "pos")
    labels = [each.label for each in files.examples(content, labels="neg,pos")]
    assert labels == ["neg", "pos", "pos"]
    # Labels that are numbers themselves are no positions.
    assert [e.label for e in files.examples(content, labels="1,0")] == ["0", "1", "1"]
    several = [{"text": f"a b {i}", "label": each} for i, each in enumerate([[0, 2], [1], []])]
    assert [e.label for e in files.examples(several, labels="x,y,z")] == [("x", "z"), ("y",), ()]
    cells = texts("label", ["0|2", "1", ""])
    assert [e.label for e in files.examples(cells, labels="x,y,z")] == [("x", "z"), ("y",), ()]
    rare = files.open(content, labels="neg,pos,other").description
    assert "labels without a training example: other" in rare


def test_several_labels(files):
    assert [e.label for e in files.examples(texts("tags", ["x|y", "", "y | y"]))] == [
        ("x", "y"),
        (),
        ("y",),
    ]
    rows = [{"text": "a b c", "tags": tags} for tags in (["x", "y"], [], ["y"], None)]
    opened = files.open(rows)
    assert (opened.task.kind, opened.task.labels) == ("multi_label", ("x", "y"))
    assert "rows without a label, left out: 1" in opened.description
    assert [e.label for e in files.examples(rows)] == [("x", "y"), (), ("y",)]
    columns = "text,toxic,rude\na b c,0,1\nd e f,1,1\ng h i,0,0\nj k l,,\n"
    opened = files.open(columns, label_column="toxic,rude")
    assert opened.task.labels == ("toxic", "rude")
    examples = files.examples(columns, label_column=["toxic", "rude"])
    assert [e.label for e in examples] == [("rude",), ("toxic", "rude"), ()]
    assert files.open(columns, label_column="toxic,rude", labels="rude,toxic").task.labels == (
        *("rude", "toxic"),
    )
    rows = [{"text": "a b", "x": True, "y": False}, {"text": "c", "x": 0, "y": 1}]
    assert [e.label for e in files.examples(rows, label_column="x,y")] == [("x",), ("y",)]


def test_tokens(files):
    rows = [
        {"tokens": ["Ada", "slept"], "ner_tags": ["B-PER", "O"], "pos_tags": ["N", "V"], "id": 7},
        {"tokens": ["No"], "ner_tags": ["O"], "pos_tags": ["D"], "id": 9},
    ]
    opened = files.open(rows)
    assert (opened.task.kind, opened.task.labels) == ("tokens", ("O", "B-PER"))
    assert opened.task.metrics[0] == "f1"
    assert files.examples(rows) == [
        TokenExample("7", ("Ada", "slept"), ("B-PER", "O")),
        TokenExample("9", ("No",), ("O",)),
    ]
    by_speech = files.open(rows, label_column="pos_tags", text_column="tokens").task
    assert (by_speech.labels, by_speech.metrics) == (("D", "N", "V"), ("accuracy",))
    numbered = [row | {"ner_tags": tags} for row, tags in zip(rows, ([1, 0], [0]), strict=True)]
    assert "--config.data.labels=O,B-PER" in files.error(numbered)
    assert files.examples(numbered, labels="O,B-PER") == files.examples(rows)
    assert "not the number of one of the 2 labels" in files.error(
        [*numbered, {"tokens": ["a"], "ner_tags": [2], "id": 1}], labels="O,B-PER"
    )


def test_tokens_that_do_not_fit(files):
    rows = [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}] * 2
    wrong = [*rows, {"tokens": ["a"], "tags": ["O", "O"]}, {"tokens": [], "tags": []}]
    assert "in 1 row 'tags' has not one tag for each word (line 3)" in files.error(wrong)
    assert "holds no lists" in files.error(
        texts("tags", ["O", "B"]), kind="tokens", text_column="text", label_column="tags"
    )


@pytest.mark.parametrize(
    ("answers", "indices"),
    [
        ([0, 2, 1], [0, 2, 1]),
        ([1, 3, 2], [0, 2, 1]),
        (["A", "C", "b"], [0, 2, 1]),
        (["red", "blue", "green"], [0, 2, 1]),
    ],
)
@pytest.mark.parametrize("form", ["list", "columns", "letters"])
def test_choices(files, answers, indices, form):
    options = ["red", "green", "blue"]
    names = {"columns": ["ending0", "ending1", "ending2"], "letters": ["opt_a", "opt_b", "opt_c"]}
    fields = dict(zip(names.get(form, []), options, strict=False)) or {"options": options}
    rows = [
        {"article": f"It is {a}.", "question": "Which?", "answer": a, **fields} for a in answers
    ]
    opened = files.open(rows)
    assert (opened.task.kind, opened.task.labels) == ("choice", ())
    assert opened.columns.choices == tuple(fields)
    assert opened.task.formatting.context_first == (form == "columns")
    assert files.examples(rows) == [
        ChoiceExample(str(i), f"It is {a}.", "Which?", tuple(options), label)
        for i, (a, label) in enumerate(zip(answers, indices, strict=True))
    ]


def test_choices_that_do_not_fit(files):
    rows = [{"question": "Which?", "choices": ["a", "b"], "label": label} for label in (0, 1, 4)]
    assert "neither a number from 0 to 1, nor a letter from A to B" in files.error(rows)
    rows = [{"question": "Which?", "choices": each, "label": 0} for each in (["a", "b"], ["a"])]
    assert "fewer than 2 choices (line 2)" in files.error(rows)
    csv = "question,choice1,choice2,choice3,label\nq,a,b,c,1\nq,a,b,,2\n"
    assert [len(each.choices) for each in files.examples(csv)] == [3, 2]


def test_choice_of_nested_objects(files):
    rows = [
        {
            "id": f"q{i}",
            "question": {"stem": "Where?", "choices": {"text": ["in", "out"]}},
            "answerKey": "AB"[i],
        }
        for i in range(2)
    ]
    assert files.examples(rows)[1] == ChoiceExample("q1", "", "Where?", ("in", "out"), 1)


def test_unlabelled_and_empty_rows_are_counted(files):
    train = 'text,label\na,x\n"",y\nb,\nc,y\n'
    test = "text,label\na,-1\nd,-1\n"
    opened = files.open(train, "text,label\nb,x\ne,\n", test)
    assert opened.description.splitlines()[:3] == [
        "train: 3 examples of train.csv; rows with an empty text, kept: 1; "
        "rows without a label, left out: 1",
        "validation: 1 example of validation.csv; rows without a label, left out: 1",
        "test: 2 examples of test.csv; rows without a label: 2; texts that are also in train: 1",
    ]
    task = opened.task
    assert [e.label for e in task.reader(files.folder / "test.csv", task, "test")] == [None, None]
    files.open(train, test="text\na\n")  # without a column of labels


def test_ids(files):
    content = "id,text,label\na7,x,1\na8,y,0\na9,z,1\na6,z,0\n"
    assert [each.id for each in files.examples(content)] == ["a7", "a8", "a9", "a6"]
    double = content.replace("a8", "a7")
    assert [each.id for each in files.examples(double)] == ["0", "1", "2", "3"]
    message = files.error(double, id_column="id")
    assert "the value 'a7' is in lines 2 and 3" in message
    assert "line 3 has none" in files.error(content.replace("a8", ""), id_column="id")
    # A file of the run with repeated ids is enough to number the rows of all.
    opened = files.open(content, double)
    assert opened.columns.id is None


def test_validation_as_a_share(files):
    for share in (0.25, "0.25"):
        opened = open_user_data("csv", files.write("a.csv", REVIEWS), share)
        assert opened.validation_share == 0.25
        assert set(opened.task.files) == {"train"}
        assert "validation: 0.25 of the training examples" in opened.description
    for wrong in (0, 1, "1.5", -0.1, "nan"):
        with pytest.raises(UsageError, match=r"--config.data.validation=.*between 0 and 1"):
            open_user_data("csv", files.folder / "a.csv", wrong)


@pytest.mark.parametrize(
    ("train", "validation", "options", "parts"),
    [
        ("text,label\n", None, {}, ["--config.data.train", "a header and no rows"]),
        (REVIEWS, "review,stars\n", {}, ["--config.data.validation", "a header and no rows"]),
        (texts("label", ["x"] * 9), None, {}, ["all 9 examples", "the label 'x'", "to learn"]),
        (texts("label", [2.5] * 9), None, {}, ["all 9 examples", "the target 2.5"]),
        (texts("label", ["x|y"] * 3), None, {}, ["all 3 examples", "the labels x, y"]),
        (texts("label", ["", " "]), None, {"kind": "classification"}, ["no row", "has a label"]),
        (
            texts("label", [1.5, "nan", 2.5, "inf", "nan"]),
            None,
            {},
            ["in 3 rows the target is not a finite number", "'inf', 'nan'", "(lines 3, 5, 6)"],
        ),
        (
            texts("label", [1.5, "good", 2.5]),
            None,
            {"kind": "regression"},
            ["the target is not a number: 'good' (line 3)", "kind=classification"],
        ),
        (
            texts("label", ["x", "y"]),
            texts("label", ["x", "z", "z", "Y"]),
            {},
            ["validation.csv", "in 3 rows the label is none of x, y: 'Y', 'z' (lines 3, 4, 5)"],
        ),
        (texts("label", ["x", "y"]), None, {"labels": "x,z"}, ["none of x, z: 'y' (line 3)"]),
        (texts("label", ["x", "y"]), texts("lable", ["x"]), {}, ["no column 'label'", "'lable'"]),
        (
            REVIEWS,
            None,
            {"text_column": "reviews"},
            [
                "--config.data.text_column=reviews: ",
                "no column 'reviews'. Its columns: review, stars, author. Did you mean 'review'?",
            ],
        ),
        (REVIEWS, None, {"label_column": "stars,author,x"}, ["label_column=x", "Its columns"]),
        (REVIEWS, None, {"text_column": "stars", "label_column": "stars"}, ["'stars' twice"]),
        (REVIEWS, None, {"labels": "a,b,a"}, ["--config.data.labels names 'a' twice"]),
        (REVIEWS, None, {"labels": "a"}, ["at least two labels"]),
        (REVIEWS, None, {"kind": "pair"}, ["--config.data.kind=pair", "pair_column"]),
        (REVIEWS, None, {"kind": "ner"}, ["none of the kinds classification, multi_label"]),
        (REVIEWS, None, {"kind": "regression", "labels": "1,2"}, ["has no labels"]),
        (
            "text,a,b\nx y z,0,1\nx y,1,1\n",
            None,
            {"label_column": "a,b", "labels": "c,a"},
            ["labels=c,a are not the names of the columns", "label_column=a,b"],
        ),
        (REVIEWS, None, {"kind": "choice"}, ["the choices", "choice_columns=COLUMN"]),
        (REVIEWS, None, {"kind": "tokens"}, ["the words", "text_column"]),
        (
            "great fun,pos\nno fun,neg\nfine,pos\nwell,pos\n",
            None,
            {},
            ["seems to have no header", "'pos' is also a value"],
        ),
        (
            "great fun,pos\nno fun,neg\nfine,pos\nwell,pos\n",
            None,
            {"text_column": "text"},
            ["seems to have no header"],
        ),
        (
            [{"text": ["a"], "label": "x"}, {"text": "b", "label": "y"}],
            None,
            {"text_column": "text"},
            ["column 'text' is a list, and a text is needed (line 1)"],
        ),
        (
            [{"text": "a", "label": "x"}, {"text": "b", "label": ["y"]}],
            None,
            {"kind": "classification"},
            ["the label is a list", "kind=multi_label"],
        ),
        (
            texts("label", ["\"['a', 'b']\"", "[]"]),
            None,
            {"kind": "multi_label"},
            ["look like a list, but not like one in JSON", "one|two"],
        ),
        (
            "text,a,b\nx y z,0,1\nx y,1,2\n",
            None,
            {"label_column": "a,b"},
            ["column 'b' has to be 0 or 1, but is: '2' (line 3)"],
        ),
    ],
)
def test_wrong_data(files, train, validation, options, parts):
    message = files.error(train, validation, **options)
    for part in parts:
        assert part in message


def test_missing_files(files):
    with pytest.raises(NotFoundError, match="--config.data.train: no file"):
        open_user_data("csv", files.folder / "none.csv")
    path = files.write("a.csv", REVIEWS)
    with pytest.raises(NotFoundError, match="--config.data.test: no file"):
        open_user_data("csv", path, test="nowhere.csv")
    with pytest.raises(UsageError, match="--config.data.train: name the csv file"):
        open_user_data("csv", "")
    with pytest.raises(UsageError, match="one of csv, tsv, jsonl, not 'xlsx'"):
        open_user_data("xlsx", path)


def test_halves_of_surrogate_pairs_are_replaced(files):
    path = files.write(
        "train.jsonl",
        r'{"text": "a\ud83d", "label": 0}' "\n" r'{"text": "b\ud83d\ude00", "label": 1}',
    )
    task = open_user_data("jsonl", path, label_column="label", kind="classification").task
    assert [e.text_a for e in task.reader(path, task, "train")] == ["a\ufffd", "b😀"]


@pytest.mark.parametrize(
    ("name", "kind", "labels", "fields"),
    [
        ("RTE", "classification", ("entailment", "not_entailment"), ("sentence1", "sentence2")),
        ("SST-2", "classification", ("0", "1"), ("sentence",)),
        ("STS-B", "regression", (), ("sentence1", "sentence2")),
        ("WNLI", "classification", ("0", "1"), ("sentence1", "sentence2")),
    ],
)
def test_files_of_glue_are_recognized(real_data, name, kind, labels, fields):
    folder = real_data / "glue" / name
    paths = [folder / f"{split}.tsv.xz" for split in ("train", "dev", "test")]
    task = open_user_data("tsv", *paths).task
    assert (task.kind, task.labels, task.fields) == (kind, labels, fields)


def test_choices_of_swag_and_race_are_recognized(real_data):
    folder = real_data / "multiple_choice"
    swag = open_user_data("csv", folder / "swag_sample.csv").columns
    assert (swag.text, swag.pair, swag.label) == ("sent1", "sent2", ("label",))
    assert swag.choices == ("ending0", "ending1", "ending2", "ending3")
    race = open_user_data("jsonl", folder / "race_sample.train.jsonl.xz").columns
    assert (race.text, race.pair, race.choices) == ("article", "question", ("options",))


DAMAGE = st.sampled_from(
    [b'"', b",", b"\n", b"\r\n", b"\t", b"[", b"{", b"}", b"null", b"NaN", b"|"]
)
SAMPLES = {
    "csv": REVIEWS.encode(),
    "tsv": REVIEWS.replace(",", "\t").encode(),
    "jsonl": b'{"text": "a b c", "label": ["x"]}\n{"text": "d e f", "label": [], "id": {"n": 1}}\n',
}


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    format=st.sampled_from(sorted(SAMPLES)),
    cuts=st.lists(
        st.tuples(st.integers(0, 200), st.integers(0, 4), st.binary(max_size=3) | DAMAGE),
        min_size=1,
        max_size=4,
    ),
    options=st.fixed_dictionaries(
        {},
        optional={
            "kind": st.sampled_from(["classification", "regression", "multi_label", "tokens"]),
            "text_column": st.sampled_from(["review", "text", "author", "x"]),
            "label_column": st.sampled_from(["stars", "label", "id.n", "stars,author"]),
            "labels": st.sampled_from(["1,2,3,4,5", "x", "y,x"]),
            "choice_columns": st.sampled_from(["author", "author,review", "label"]),
        },
    ),
)
def test_whatever_is_in_a_file_it_is_a_task_or_an_error(tmp_path, format, cuts, options):
    data = SAMPLES[format]
    for place, length, new in cuts:
        data = data[:place] + new + data[place + length :]
    path = tmp_path / f"a.{format}"
    path.write_bytes(data)
    try:
        task = open_user_data(format, path, 0.5, path, **options).task
    except UsageError:
        return
    examples = list(task.reader(path, task, "train"))
    assert examples
    if task.labels:
        used = [e.tags if task.kind == "tokens" else e.label for e in examples]
        assert {n for each in used for n in (each if type(each) is tuple else [each])} <= {
            *task.labels
        }


def test_metrics_exist(files):
    for rows in (
        [{"text": f"a b {i}", "label": label} for i, label in enumerate(["x", "y"])],
        [{"text": f"a b {i}", "label": [label]} for i, label in enumerate("xy")],
        [{"text": f"a b {i}", "label": i / 7} for i in range(9)],
        [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}] * 2,
        [{"tokens": ["a", "b"], "tags": ["D", "N"]}] * 2,
        [{"question": "Which?", "choices": ["a", "b"], "label": 0}] * 2,
    ):
        task = files.open(rows).task
        metrics.check(task.metrics, task.labels, task.kind)
