"""Encoding whole corpora, as fast as the same ids can be had."""

from collections.abc import Sequence

import numpy as np

from roberta_jax.tokenizer.roberta import RobertaTokenizer


class BulkEncoder:
    """Encodes sentences to bare ids: no special token is added or recognised. Pickles."""

    def __init__(self, tokenizer: RobertaTokenizer):
        self._tokenizer = tokenizer

    def encode_documents(
        self, documents: Sequence[Sequence[str]]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Encodes documents, each a sequence of sentences without line ends.

        Returns:
          The ids of all sentences, uint32 [T]; the number of ids of each sentence, int64 [S]; the
          number of sentences of each document, int64 [D].
        """
        sentences = [sentence.strip() for document in documents for sentence in document]
        rows = self._tokenizer(sentences, add_special_tokens=False, split_special_tokens=True)
        rows = rows["input_ids"]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        tokens = np.fromiter((i for row in rows for i in row), np.uint32, int(lengths.sum()))
        counts = np.fromiter(map(len, documents), np.int64, len(documents))
        return tokens, lengths, counts
