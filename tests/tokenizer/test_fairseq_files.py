"""fairseq's tokenizer files."""

import json
import os
import pathlib
import shutil

import pytest

from roberta_jax import RobertaTokenizer
from roberta_jax.errors import UsageError
from roberta_jax.tokenizer import fairseq_files


def test_a_vocabulary_in_another_order_is_an_error(tokenizer, tmp_path):
    vocab = tokenizer.get_vocab()
    for change, message in (
        ({"extra": len(vocab) + 3}, "have gaps"),
        ({"extra": len(vocab)}, "<mask> last"),
    ):
        with pytest.raises(UsageError, match=message):
            fairseq_files.write(tmp_path, vocab | change, [])
    del vocab["a"]
    with pytest.raises(UsageError, match="each byte"):
        fairseq_files.write(tmp_path, vocab, [])


def test_the_files_of_robertas_vocabulary_are_gpt2s_released_ones(tmp_path):
    """From RoBERTa's vocabulary and merges, all three files but the counts of dict.txt."""
    if "ROBERTA_JAX_DATA" not in os.environ:
        pytest.skip("ROBERTA_JAX_DATA names no folder with GPT-2's files")
    data = pathlib.Path(os.environ["ROBERTA_JAX_DATA"]) / "bpe_gpt2"
    for name in ("encoder.json", "vocab.bpe", "dict.txt"):
        shutil.copy(data / name, tmp_path)
    released = {
        name: (tmp_path / name).read_text(encoding="utf-8")
        for name in ("encoder.json", "vocab.bpe", "dict.txt")
    }
    tokenizer = RobertaTokenizer.from_pretrained(tmp_path)
    (tmp_path / "hf").mkdir()
    tokenizer.save_vocabulary(str(tmp_path / "hf"))
    lines = (tmp_path / "hf" / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    merges = [tuple(line.split(" ")) for line in lines]
    vocab = json.loads((tmp_path / "hf" / "vocab.json").read_text(encoding="utf-8"))
    fairseq_files.write(tmp_path, vocab, merges)
    assert json.loads((tmp_path / "encoder.json").read_text()) == json.loads(
        released["encoder.json"]
    )
    assert (tmp_path / "vocab.bpe").read_text(encoding="utf-8") == released["vocab.bpe"]
    rows = [line.split()[0] for line in (tmp_path / "dict.txt").read_text().splitlines()]
    assert rows == [line.split()[0] for line in released["dict.txt"].splitlines()]
