"""FillMask against transformers' pipeline, and the command around it."""

import contextlib
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import roberta_jax
from roberta_jax import fill_mask as job
from roberta_jax.errors import UsageError
from roberta_jax.inference.fill_mask import FillMask
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.heads import RobertaForMaskedLM, RobertaModel
from roberta_jax.tokenizer import RobertaTokenizer

SENTENCES = (
    "The cat sat on the mat, or so they say.",
    "Return True if the path exists, otherwise return False.",
    "Naïve cafés sell crème brûlée; 猫 cats drink milk.",
)
ONE_MASK = "Return <mask> if the path exists."
TWO_MASKS = "The <mask> sat on the<mask>, or so they say."
TEXTS = [
    ONE_MASK,
    TWO_MASKS,
    "<mask>",
    "The cat sat on the mat, " * 3 + "or so they <mask>.",
    "Naïve  <mask> sell\n crème brûlée <pad> </s> <unk> 猫",
    " <mask>" * 9,
]


@pytest.fixture(scope="module")
def tokenizer():
    return RobertaTokenizer.train(SENTENCES * 3, vocab_size=320)


@pytest.fixture(scope="module")
def model(tokenizer):
    config = RobertaConfig.base(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=80,
        initializer_range=0.3,
    )
    return RobertaForMaskedLM(config)


@pytest.fixture(scope="module")
def params(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    draw = np.random.default_rng(0).normal
    return jax.tree.map(lambda x: draw(0, 0.3, x.shape).astype(np.float32), shapes["params"])


@pytest.fixture(scope="module")
def fill(model, params, tokenizer):
    return FillMask(model, params, tokenizer)


@pytest.fixture(scope="module")
def folder(model, params, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "hf"
    roberta_jax.save_pretrained(folder, model, params, tokenizer)
    return folder


def assert_same(ours, theirs):
    """Equal in nesting, tokens and texts, and in scores to rounding."""
    if isinstance(theirs, list):
        assert isinstance(ours, list)
        assert len(ours) == len(theirs)
        for left, right in zip(ours, theirs, strict=True):
            assert_same(left, right)
    else:
        assert ours.keys() == theirs.keys()
        assert {**ours, "score": 0} == {**theirs, "score": 0}
        assert ours["score"] == pytest.approx(theirs["score"], rel=1e-4, abs=1e-7)
        assert type(ours["token"]) is int
        assert type(ours["score"]) is float


# Results


def test_scores_are_the_probabilities_at_the_mask(fill, model, params, tokenizer):
    ids = np.array([tokenizer.encode(ONE_MASK)])
    logits = jax.jit(model.apply)({"params": params}, ids).logits
    place = int(np.flatnonzero(ids[0] == tokenizer.mask_token_id)[0])
    scores = np.asarray(jax.nn.softmax(logits[0, place]))
    best = np.argsort(-scores)[:4]
    results = fill(ONE_MASK, top_k=4)
    assert [result["token"] for result in results] == best.tolist()
    np.testing.assert_allclose([result["score"] for result in results], scores[best], rtol=1e-4)
    for result in results:
        assert result["token_str"] == tokenizer.decode([result["token"]])
        expected = ids[0].copy()
        expected[place] = result["token"]
        assert result["sequence"] == tokenizer.decode(expected, skip_special_tokens=True)


def test_results_are_nested_as_the_texts_and_masks_are(fill):
    one, two = fill(ONE_MASK), fill(TWO_MASKS, top_k=2)
    assert [len(one), type(one[0])] == [5, dict]
    assert [len(two), len(two[0]), type(two[0][0])] == [2, 2, dict]
    assert fill([ONE_MASK]) == one  # as in transformers
    both = fill([ONE_MASK, TWO_MASKS])
    assert [len(both), len(both[0]), len(both[1])] == [2, 5, 2]
    assert fill([]) == []
    assert fill.predictions([]) == []
    assert fill.predictions([ONE_MASK]) == [[one]]
    assert all(result["sequence"].count("<mask>") == 1 for result in two[0])


def test_a_text_gets_the_same_result_alone_and_in_any_batch(fill, model, params, tokenizer):
    texts = [TEXTS[i] for i in (0, 1, 2, 0, 1, 2, 0)]
    together = fill.predictions(texts)
    in_pairs = FillMask(model, params, tokenizer, batch_size=2).predictions(texts)
    for text, left, right in zip(texts, together, in_pairs, strict=True):
        [alone] = fill.predictions([text])
        assert_same(left, alone)
        assert_same(right, alone)


def test_few_programs_are_compiled(model, params, tokenizer):
    fill = FillMask(model, params, tokenizer)
    words = ["cat"] * 60
    texts = [" ".join(words[:n]) + " <mask>" for n in range(1, 60)]
    fill(texts)
    fill(texts, top_k=3)
    fill(texts, targets=["c", "m"])
    # Lengths of 16, 32, 64 and 78 (the most this model takes), and a last batch with fewer texts.
    assert fill._best._cache_size() <= 8


def test_targets_rank_only_those_tokens(fill, tokenizer):
    everything = {choice["token"]: choice["score"] for choice in fill(ONE_MASK, top_k=320)}
    targets = [tokenizer.convert_ids_to_tokens(i) for i in (300, 280, 300, 290)]
    results = fill(ONE_MASK, targets=targets)
    assert {choice["token"] for choice in results} == {280, 290, 300}
    scores = [choice["score"] for choice in results]
    assert scores == sorted(scores, reverse=True)
    for choice in results:
        assert choice["score"] == pytest.approx(everything[choice["token"]], rel=1e-5)
    with pytest.warns(UserWarning, match="'zebra' is not a token.* 'z' is used"):
        assert fill(ONE_MASK, targets="zebra") == fill(ONE_MASK, targets="z")


def test_top_k_is_limited_to_the_vocabulary(fill, tokenizer):
    results = fill(ONE_MASK, top_k=10_000)
    assert sorted(choice["token"] for choice in results) == list(range(len(tokenizer)))
    assert sum(choice["score"] for choice in results) == pytest.approx(1, abs=1e-5)


# Bad input


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Return True.", r"'Return True\.' has no mask: write <mask>"),
        ("", "'' has no mask"),
        ("a " * 90 + "<mask>", r"'a a .*…' has \d+ tokens.* at most 78"),
        (3, "must be strings, not int"),
    ],
)
def test_a_bad_text_is_quoted_with_the_reason(fill, text, said):
    with pytest.raises(UsageError, match=said) as error:
        fill.predictions([ONE_MASK, text])
    assert len(str(error.value)) < 250


def test_the_longest_text_fits(fill, tokenizer):
    text = "<mask>" + " the" * 200
    ids = tokenizer.encode(text)[:77]
    longest = tokenizer.decode(ids[1:])
    assert len(tokenizer.encode(longest)) == 78
    assert len(fill(longest)) == 5


@pytest.mark.parametrize(
    ("options", "said"),
    [({"top_k": 0}, "top_k must be at least 1"), ({"targets": []}, "names no token")],
)
def test_a_bad_option_is_an_error(fill, options, said):
    with pytest.raises(UsageError, match=said):
        fill(ONE_MASK, **options)


def test_a_model_or_tokenizer_that_does_not_fit_is_an_error(model, params, tokenizer):
    encoder = RobertaModel(model.config)
    with pytest.raises(UsageError, match="no masked-LM head"):
        FillMask(encoder, params["roberta"], tokenizer)
    smaller = RobertaForMaskedLM(model.config.replace(vocab_size=319))
    with pytest.raises(UsageError, match="320 ids and the model 319"):
        FillMask(smaller, params, tokenizer)


# The command


def run_command(*arguments, stdin=""):
    """Returns (exit status, standard output, standard error)."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("sys.stdin", io.StringIO(stdin))
        try:
            job.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
    return status, out.getvalue(), err.getvalue()


def test_the_command_prints_a_table_per_mask(folder, fill):
    status, out, err = run_command(folder, ONE_MASK, TWO_MASKS, "--top_k=2")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    best = fill(ONE_MASK, top_k=2)
    assert lines[0] == ONE_MASK
    assert lines[1].split() == ["score", "token", "sequence"]
    for line, choice in zip(lines[2:4], best, strict=True):
        assert line.split()[0] == f"{choice['score']:.4f}"
        assert repr(choice["token_str"]) in line
        assert line.endswith(choice["sequence"].replace("\n", "\\n"))
    assert lines[4:6] == ["", TWO_MASKS]
    assert lines[6].strip() == "mask 1 of 2"
    assert sum("mask 2 of 2" in line for line in lines) == 1


def test_the_command_reads_texts_from_standard_input(folder):
    status, out, _ = run_command(folder, stdin=f"{ONE_MASK}\n\n{TWO_MASKS}\n")
    assert status == 0
    assert out == run_command(folder, ONE_MASK, TWO_MASKS)[1]


@pytest.mark.parametrize(("texts", "said"), [(["no mask here"], "has no mask"), ([], "no text")])
def test_the_command_ends_with_a_message_on_bad_input(folder, texts, said):
    status, out, err = run_command(folder, *texts)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err


def test_the_command_says_what_to_do_about_an_unfinished_run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    status, _, err = run_command(tmp_path, ONE_MASK)
    assert status == 2
    assert "not finished" in err
    assert "Run the same training command again" in err


def test_the_command_says_that_the_tokenizer_is_missing(model, params, tmp_path):
    roberta_jax.save_pretrained(tmp_path / "hf", model, params)
    status, _, err = run_command(tmp_path, ONE_MASK)
    assert status == 2
    assert "cannot load the model's tokenizer" in err


# Against transformers


@pytest.mark.parity
def test_results_are_those_of_the_pipeline(fill, folder, tokenizer):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pipeline = transformers.pipeline("fill-mask", model=str(folder), device="cpu")
    for text in TEXTS:
        assert_same(fill(text), pipeline(text))
    assert_same(fill(TEXTS), pipeline(TEXTS))
    assert_same(fill([ONE_MASK]), pipeline([ONE_MASK]))
    assert_same(fill([TWO_MASKS]), pipeline([TWO_MASKS]))
    assert_same(fill(ONE_MASK, top_k=17), pipeline(ONE_MASK, top_k=17))
    targets = [tokenizer.convert_ids_to_tokens(i) for i in (300, 280, 290)]
    assert_same(fill(TEXTS, targets=targets), pipeline(TEXTS, targets=targets))


@pytest.mark.parametrize(
    ("data", "line"), [(f"{ONE_MASK}\ncafé\n".encode("latin1"), 2), ("a".encode("utf16"), 1)]
)
def test_standard_input_must_be_utf8(data, line):
    with pytest.raises(UsageError, match=f"line {line} of standard input is not UTF-8.*iconv"):
        job.read_texts(io.BytesIO(data))
    assert job.read_texts(io.BytesIO(b"\xef\xbb\xbfa\r\n \n\nb")) == ["a", "b"]


def test_a_text_that_is_not_utf8_and_a_bad_top_k_are_errors(folder):
    status, out, err = run_command(folder, "\udcff <mask>")
    assert (status, out) == (2, "")
    assert err == "error: text 1 is not UTF-8: b'\\xff <mask>'\n"
    for top_k in ("0", "-1"):
        status, _, err = run_command("nowhere", ONE_MASK, f"--top_k={top_k}")
        assert status == 2
        assert "top_k must be at least 1" in err
