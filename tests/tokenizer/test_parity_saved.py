"""Tokenizers that one library saves and the other loads, in any version of transformers."""

import json
import random

import pytest

transformers = pytest.importorskip("transformers")

from roberta_jax.tokenizer import RobertaTokenizer
from tests.support.tokenizer_examples import HARD_STRINGS, TEXTS

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def theirs(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tokenizer.save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_transformers_loads_what_we_save(tokenizer, theirs):
    assert type(theirs).__name__.startswith("RobertaTokenizer")
    assert theirs.model_max_length == 512
    assert theirs.get_vocab() == tokenizer.get_vocab()
    assert theirs.all_special_ids == tokenizer.all_special_ids
    assert theirs(HARD_STRINGS)["input_ids"] == tokenizer(HARD_STRINGS)["input_ids"]


def test_transformers_loads_vocab_and_merges(tokenizer, tmp_path):
    if int(transformers.__version__.split(".")[0]) >= 5:
        pytest.skip("transformers 5 loses <mask>'s left strip without tokenizer.json")
    tokenizer.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).unlink()
    theirs = transformers.RobertaTokenizerFast.from_pretrained(tmp_path)
    assert theirs(HARD_STRINGS)["input_ids"] == tokenizer(HARD_STRINGS)["input_ids"]
    for options in ("added_tokens", "post_processor", "pre_tokenizer", "decoder"):
        ours = json.loads(tokenizer.backend.to_str())[options]
        assert json.loads(theirs.backend_tokenizer.to_str())[options] == ours


def test_we_load_what_transformers_saves(tokenizer, theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    loaded = RobertaTokenizer.from_pretrained(tmp_path)
    assert loaded(HARD_STRINGS) == tokenizer(HARD_STRINGS)
    assert loaded.fingerprint() == tokenizer.fingerprint()


def test_calls_equal_transformers(tokenizer, theirs):
    rng = random.Random(0)
    pieces = [*HARD_STRINGS, *(w for text in TEXTS[:5] for w in text.split(" ")[:60])]
    for _ in range(150):
        texts = [" ".join(rng.choices(pieces, k=rng.randint(0, 9))) for _ in range(3)]
        pairs = texts[::-1] if rng.random() < 0.5 else None
        options = {
            "padding": rng.choice([False, True, "max_length"]),
            "truncation": rng.choice([None, False, True, "only_first", "only_second"]),
            "max_length": rng.choice([None, 6, 24]),
            "add_special_tokens": rng.random() < 0.8,
            "pad_to_multiple_of": rng.choice([None, 8]),
        }
        if rng.random() < 0.3:
            texts, pairs = texts[0], pairs and pairs[0]
        try:
            expected = theirs(texts, pairs, **options)
        except Exception:
            with pytest.raises(ValueError):
                tokenizer(texts, pairs, **options)
            continue
        assert tokenizer(texts, pairs, **options) == dict(expected), (texts, pairs, options)


def test_decoding_equals_transformers(tokenizer, theirs):
    rng = random.Random(1)
    for _ in range(100):
        ids = rng.choices(range(1000), k=30) + rng.choices(tokenizer.all_special_ids, k=3)
        for skip in (False, True):
            tokens = tokenizer.convert_ids_to_tokens(ids, skip_special_tokens=skip)
            assert tokens == theirs.convert_ids_to_tokens(ids, skip_special_tokens=skip)
            for clean in (None, True):
                options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
                assert tokenizer.decode(ids, **options) == theirs.decode(ids, **options)
