"""Tokenizers of related models: unigram and WordPiece, used as their `tokenizer.json` defines them.

The fixtures have the ids, templates, normalizers and white space rules of the released models.
"""

import copy
import json
import pickle
import pydoc_data.topics
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from roberta_jax.tokenizer import RobertaTokenizer
from roberta_jax.tokenizer.bulk import BulkEncoder

SENTENCES = [
    line.strip() for text in [*pydoc_data.topics.topics.values()][:12] for line in text.split("\n")
]
SENTENCES += ["Le café est très chaud, n'est-ce pas ?", "日本語のテキスト", "한국어 텍스트입니다"]
TEXTS = [
    "",
    " ",
    "The class statement",
    "  a  <mask>  b<mask>c <s> </s> [MASK] [SEP]x",
    "Café cafe\u0301 ﬁ İ 日本語 한국어 👍🏽 مرحبا\n\tnext\u3000line",
    "unknown ᚠᛇᚻ words, and 3.14!",
]
EVERYTHING = {
    "return_token_type_ids": True,
    "return_special_tokens_mask": True,
    "return_offsets_mapping": True,
}


def unigram(first: list[str], bos: str, eos: str) -> Tokenizer:
    """A pipeline like that of XLM-R or CamemBERT; `first` are the tokens before the pieces."""
    learner = Tokenizer(models.Unigram())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    learner.train_from_iterator(SENTENCES, trainer)
    pieces = [tuple(piece) for piece in json.loads(learner.to_str())["model"]["vocab"]]
    vocab = [(token, 0.0) for token in first] + [p for p in pieces if p[0] not in first]
    vocab.append(("<mask>", 0.0))
    backend = Tokenizer(models.Unigram(vocab, unk_id=first.index("<unk>")))
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    names = [(token, first.index(token)) for token in (bos, eos)]
    backend.post_processor = processors.TemplateProcessing(
        single=[bos, "$A", eos], pair=[bos, "$A", eos, eos, "$B", eos], special_tokens=names
    )
    special = [AddedToken(token, special=True) for token in first if token.startswith("<")]
    backend.add_special_tokens([*special, AddedToken("<mask>", lstrip=True, special=True)])
    return backend


def word_pieces() -> Tokenizer:
    """A pipeline like that of klue/roberta: BERT's, with RoBERTa's order of ids."""
    special = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(
        SENTENCES,
        trainers.WordPieceTrainer(vocab_size=500, special_tokens=special, show_progress=False),
    )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 0), ("[SEP]", 2)],
    )
    return backend


XLM_R = ["<s>", "<pad>", "</s>", "<unk>"]
CAMEMBERT = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>"]
KLUE_NAMES = {
    "bos_token": "[CLS]",
    "eos_token": "[SEP]",
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
MODELS = {
    "xlm-r": (lambda: unigram(XLM_R, "<s>", "</s>"), {"tokenizer_class": "XLMRobertaTokenizer"}),
    "camembert": (
        lambda: unigram(CAMEMBERT, "<s>", "</s>"),
        {"tokenizer_class": "CamembertTokenizer"},
    ),
    "klue": (
        word_pieces,
        {"tokenizer_class": "BertTokenizer", "do_lower_case": False} | KLUE_NAMES,
    ),
}
CLASSES = {
    "xlm-r": "XLMRobertaTokenizerFast",
    "camembert": "CamembertTokenizerFast",
    "klue": "BertTokenizerFast",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("related_models")
    for name, (make, config) in MODELS.items():
        (folder / name).mkdir()
        make().save(str(folder / name / "tokenizer.json"))
        config = {"model_max_length": 512, **config}
        (folder / name / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module", params=list(MODELS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(folders, name):
    return RobertaTokenizer.from_pretrained(folders / name)


def test_ids_of_the_special_tokens(folders):
    expected = {
        "xlm-r": {"bos": 0, "cls": 0, "pad": 1, "eos": 2, "sep": 2, "unk": 3},
        "camembert": {"bos": 5, "cls": 5, "pad": 1, "eos": 6, "sep": 6, "unk": 3},
        "klue": {"bos": 0, "cls": 0, "pad": 1, "eos": 2, "sep": 2, "unk": 3, "mask": 4},
    }
    for name, ids in expected.items():
        tokenizer = RobertaTokenizer.from_pretrained(folders / name)
        ids = {"mask": len(tokenizer) - 1, **ids}
        assert {role: getattr(tokenizer, f"{role}_token_id") for role in ids} == ids
        assert not tokenizer.is_byte_level
    camembert = RobertaTokenizer.from_pretrained(folders / "camembert")
    assert camembert.additional_special_tokens == ["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"]


def test_calls(tokenizer):
    text, other = "The class statement", "a function"
    a, b = (tokenizer.encode(t, add_special_tokens=False) for t in (text, other))
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert tokenizer.encode(text) == [bos, *a, eos]
    assert tokenizer.build_inputs_with_special_tokens(a) == [bos, *a, eos]
    encoded = tokenizer(text, other, return_token_type_ids=True, return_special_tokens_mask=True)
    assert encoded["input_ids"] == tokenizer.build_inputs_with_special_tokens(a, b)
    types = tokenizer.create_token_type_ids_from_sequences(a, b)
    assert encoded["token_type_ids"] == types
    assert encoded["special_tokens_mask"] == tokenizer.get_special_tokens_mask(a, b)
    assert list(tokenizer(text)) == [
        "input_ids",
        "attention_mask",
    ]  # token type ids are not returned by default
    assert tokenizer.decode(a).replace(" ", "") == text.replace(" ", "")
    batch = tokenizer([3 * f"{text} ", other], padding=True, truncation=True, max_length=7)
    assert [len(row) for row in batch["input_ids"]] == [7, 7]
    assert batch["input_ids"][1][-1] == tokenizer.pad_token_id
    assert tokenizer.tokenize("x " + tokenizer.mask_token)[-1] == tokenizer.mask_token
    words = tokenizer(text.split(), is_split_into_words=True)
    assert words["input_ids"] == [bos, *a, eos]
    assert max(w for w in words.word_ids() if w is not None) == 2


def test_bulk_encoding_gives_the_same_ids(tokenizer):
    encoder = BulkEncoder(tokenizer)
    assert not encoder.uses_tiktoken
    lines = [text.strip().split("\n")[0] for text in TEXTS]
    tokens, lengths, _ = encoder.encode_documents([lines])
    rows = tokenizer(lines, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokens.tolist() == [i for row in rows for i in row]
    assert lengths.tolist() == [*map(len, rows)]


def test_word_starts(tokenizer, name):
    table = tokenizer.word_start_table()
    ids = tokenizer.encode("classstatement classstatement", add_special_tokens=False)
    assert len(ids) > 2
    starts = table[ids]
    assert starts[0]
    assert starts.sum() == 2
    assert table[tokenizer.all_special_ids].all()
    assert table.dtype == np.bool_


def test_files_and_copies(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "one")
    saved = {path.name for path in (tmp_path / "one").iterdir()}
    assert saved == {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    loaded = RobertaTokenizer.from_pretrained(tmp_path / "one")
    for other in (loaded, pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert other.fingerprint() == tokenizer.fingerprint()
        assert other.special_tokens_map == tokenizer.special_tokens_map
        assert dict(other(TEXTS)) == dict(tokenizer(TEXTS))
    loaded.save_pretrained(tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_options_of_byte_level_bpe_are_refused(tokenizer, folders, name, tmp_path):
    with pytest.raises(ValueError, match="of another kind.*tokenizer.json"):
        tokenizer.save_vocabulary(tmp_path)
    with pytest.raises(ValueError, match="of another kind"):
        tokenizer.save_pretrained(tmp_path, legacy_format=True)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="RoBERTa's own kind"):
        RobertaTokenizer.from_pretrained(folders / name, single_separator_pairs=True)


def test_word_level_model_has_no_word_starts(tmp_path):
    vocab = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "a", "<mask>"])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = RobertaTokenizer(tokenizer_object=backend)
    assert tokenizer.encode("a b") == [4, 3]  # there is no template
    with pytest.raises(ValueError, match="WordLevel model do not show"):
        tokenizer.word_start_table()


def test_byte_level_bpe_with_another_template(tmp_path):
    """The template is used as it is, and tokens show word starts as RoBERTa's do."""
    own = RobertaTokenizer.train(SENTENCES, vocab_size=600)
    backend = Tokenizer.from_str(own.backend.to_str())
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = RobertaTokenizer.from_pretrained(tmp_path)
    ids = own.encode("The class", add_special_tokens=False)
    assert tokenizer.encode("The class") == [0, *ids]
    assert tokenizer.encode("The class", "The class") == [0, *ids, 0, *ids]
    assert tokenizer.build_inputs_with_special_tokens(ids, ids) == [0, *ids, 0, *ids]
    np.testing.assert_array_equal(tokenizer.word_start_table(), own.word_start_table())


def test_train_new_from_iterator(tokenizer, name):
    other = tokenizer.train_new_from_iterator(
        [SENTENCES[:80], SENTENCES[80:160]],
        vocab_size=150,
        new_special_tokens=["<new>"],
        special_tokens_map={tokenizer.mask_token: "<hidden>"},
        show_progress=False,
    )
    assert other.get_vocab().keys() != tokenizer.get_vocab().keys()
    assert other.mask_token == "<hidden>"
    assert other.additional_special_tokens[-1] == "<new>"
    ids = other.encode("class <hidden><new>", add_special_tokens=False)
    assert ids[-2:] == [other.mask_token_id, other.convert_tokens_to_ids("<new>")]
    whole = other.encode("class <hidden><new>")
    assert whole == [other.cls_token_id, *ids, other.sep_token_id]
    assert len(other.encode("a", "b")) == len(tokenizer.encode("a", "b"))
    assert other.padding_side == tokenizer.padding_side
    assert tokenizer.mask_token != "<hidden>"


def test_special_tokens_by_usual_names(folders, tmp_path):
    """Without a config they are found by name; named tokens that are missing are added."""
    for name in MODELS:
        folder = tmp_path / name
        folder.mkdir()
        pipeline = (folders / name / "tokenizer.json").read_bytes()
        (folder / "tokenizer.json").write_bytes(pipeline)
        bare = RobertaTokenizer.from_pretrained(folder)
        full = RobertaTokenizer.from_pretrained(folders / name)
        assert bare.special_tokens_map == full.special_tokens_map
        assert bare.all_special_ids == full.all_special_ids
        more = RobertaTokenizer.from_pretrained(folder, pad_token="[NEW]")
        assert more.pad_token_id == len(bare) == len(more) - 1
        (folder / "special_tokens_map.json").write_text('{"pad_token": {"content": "[NEW]"}}')
        assert RobertaTokenizer.from_pretrained(folder).pad_token_id == len(bare)


def test_old_format_of_tokenizer_json(tmp_path):
    """As in distilroberta and twitter-roberta: merges are strings, with older token settings."""
    own = RobertaTokenizer.train(SENTENCES, vocab_size=600)
    pipeline = json.loads(own.backend.to_str())
    pipeline["model"]["merges"] = [" ".join(m) for m in pipeline["model"]["merges"]]
    for token in pipeline["added_tokens"]:
        token["normalized"] = token["content"] != "<mask>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(pipeline))
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 512}')
    loaded = RobertaTokenizer.from_pretrained(tmp_path)
    assert loaded.is_byte_level
    assert loaded.fingerprint() == own.fingerprint()
    assert dict(loaded(TEXTS)) == dict(own(TEXTS))


def test_sentencepiece_is_not_needed(folders):
    program = (
        "import sys; sys.modules['sentencepiece'] = None\n"
        "from roberta_jax.tokenizer import RobertaTokenizer\n"
        f"for name in {list(MODELS)}:\n"
        f"    RobertaTokenizer.from_pretrained({str(folders)!r} + '/' + name)('a b')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# Comparison with transformers


def assert_same(ours, theirs):
    for name in (
        "vocab_size", "all_special_tokens", "all_special_ids", "bos_token_id", "eos_token_id",
        "unk_token_id", "sep_token_id", "pad_token_id", "cls_token_id", "mask_token_id",
        "additional_special_tokens", "special_tokens_map", "added_tokens_decoder", "padding_side",
        "model_max_length", "max_len_single_sentence", "max_len_sentences_pair",
    ):  # fmt: skip
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.get_vocab() == theirs.get_vocab()
    assert len(ours) == len(theirs)
    pairs = [TEXTS, TEXTS[::-1]]
    truncated = {"truncation": True, "max_length": 14, "stride": 1, "padding": True}
    truncated["return_overflowing_tokens"] = True
    for arguments in ([TEXTS], pairs):
        for options in (EVERYTHING, EVERYTHING | truncated, {"add_special_tokens": False}):
            options = {"return_token_type_ids": True, **options}
            got, expected = ours(*arguments, **options), theirs(*arguments, **options)
            assert dict(got) == dict(expected)
            for one, other in zip(got.encodings, expected.encodings, strict=True):
                assert (one.tokens, one.word_ids) == (other.tokens, other.word_ids)
    words = [text.split() for text in TEXTS]
    split = {"is_split_into_words": True, **EVERYTHING}
    assert dict(ours(words, **split)) == dict(theirs(words, **split))
    ids = ours(TEXTS)["input_ids"]
    for skip in (False, True):
        assert ours.batch_decode(ids, skip) == theirs.batch_decode(ids, skip_special_tokens=skip)
    for ids in (ours.encode(t, add_special_tokens=False) for t in TEXTS):
        tokens = ours.convert_ids_to_tokens(ids)
        assert ours.convert_tokens_to_string(tokens) == theirs.convert_tokens_to_string(tokens)
        assert ours.create_token_type_ids_from_sequences(ids, ids) == (
            theirs.create_token_type_ids_from_sequences(ids, ids)
        )


@pytest.mark.parity
def test_equals_the_models_class_of_transformers(folders, name, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = RobertaTokenizer.from_pretrained(folders / name)
    theirs = getattr(transformers, CLASSES[name]).from_pretrained(folders / name)
    assert_same(ours, theirs)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs", legacy_format=False)
    assert_same(ours, transformers.AutoTokenizer.from_pretrained(tmp_path / "ours"))
    assert_same(RobertaTokenizer.from_pretrained(tmp_path / "theirs"), theirs)


@pytest.mark.parity
def test_equals_the_generic_class_of_transformers(folders, name, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = RobertaTokenizer.from_pretrained(folders / name, padding_side="left")
    ours.add_tokens(["@user"])
    ours.add_special_tokens({"additional_special_tokens": ["<e1>"]})
    ours.save_pretrained(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for tokenizer in (ours, RobertaTokenizer.from_pretrained(tmp_path)):
        for text in ("a @user b<e1>", *TEXTS):
            assert tokenizer(text, **EVERYTHING) == theirs(text, **EVERYTHING)
        assert tokenizer.all_special_ids == theirs.all_special_ids
        assert tokenizer.padding_side == theirs.padding_side == "left"
