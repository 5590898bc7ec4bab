"""Where the text of a corpus is: the part of the config that describes one corpus."""

import dataclasses

SOURCES = ("builtin", "files", "tfds")


@dataclasses.dataclass(frozen=True)
class TextSource:
    """The keys of `config.data` that describe one corpus.

    Attributes:
      source: One of `SOURCES`.
      files: Comma-separated globs of text files. Required for the source "files".
      text_field: The field of JSON objects that holds the text, for the source "files".
      sentences: "split", or "lines" if each line is a sentence; see `split_sentences`.
      language: The language code for splitting sentences.
      tfds_name: The name of a TensorFlow dataset. Required for the source "tfds".
      tfds_split: The split of the dataset, such as "train[:10%]". Required for the source "tfds".
      tfds_field: The feature that holds the text. Required for the source "tfds".
      tfds_data_dir: The folder of TensorFlow datasets. None uses the default of TFDS.
    """

    source: str = "files"
    files: str | None = None
    text_field: str = "text"
    sentences: str = "split"
    language: str = "en"
    tfds_name: str | None = None
    tfds_split: str | None = None
    tfds_field: str | None = None
    tfds_data_dir: str | None = None
