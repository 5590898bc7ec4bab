"""What a fine-tuning task is: a row of the table in `tasks.table`."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from roberta_jax.tasks.examples import Example

# Kind of task -> what its examples are and what is predicted; `tasks.kinds` has a module for each.
KINDS = (
    "classification",  # one label for a text or a pair
    "multi_label",  # any number of labels for a text or a pair
    "regression",  # a number for a text or a pair
    "tokens",  # a tag for each word
    "choice",  # one of several choices
    "question_answering",  # a span of a passage
    "pronoun",  # whether a pronoun refers to a noun phrase (WSC)
)

# (file or folder, task, split) -> the examples in it.
Reader = Callable[[pathlib.Path, "Task", str], "Iterator[Example]"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a task is fine-tuned by default: Liu et al. 2019, Table 10, and fairseq's READMEs.

    Attributes:
      learning_rate: the peak.
      batch_size: examples per update.
      epochs: passes over the training examples; None where `steps` is given.
      steps: updates; None where `epochs` is given.
      warmup_ratio: updates of the linear warmup as a share of all updates.
      weight_decay: decoupled.
      max_length: tokens per input at most, special tokens included.
    """

    learning_rate: float = 1e-5
    batch_size: int = 32
    epochs: float | None = 10
    steps: int | None = None
    warmup_ratio: float = 0.06
    weight_decay: float = 0.1
    max_length: int = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Formatting:
    """How an example becomes the model's input, beyond its texts. Each kind uses its own part.

    Attributes:
      max_length: tokens per input at most, special tokens included.
      separators: number of `</s>` between the two texts of a pair, 2 or 1 (fairseq's
        `no_separator` form).
      prefix_a, prefix_b: put before the first and the second text ("Q: ").
      context_first: choice: whether the context stands before the question with its option, as in
        SWAG, and not after it, as in RACE.
      max_option_length: choice: tokens per question with its option at most (RACE: 128), special
        tokens not counted; None for no limit but `max_length`.
      doc_stride: question_answering: tokens from the start of a window of the passage to that of
        the next one.
      max_query_length: question_answering: tokens per question at most.
      max_answer_length: question_answering: tokens per predicted answer at most.
      n_best: question_answering: number of predictions to keep for each question.
      null_threshold: question_answering: no answer is predicted where the null score exceeds that
        of the best span by more than this; None searches the best threshold on the split itself.
    """

    max_length: int = 512
    separators: int = 2
    prefix_a: str = ""
    prefix_b: str = ""
    context_first: bool = False
    max_option_length: int | None = None
    doc_stride: int = 128
    max_query_length: int = 64
    max_answer_length: int = 30
    n_best: int = 20
    null_threshold: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A fine-tuning task.

    Attributes:
      name: its name on the command line ("rte").
      title: its name in tables ("RTE").
      kind: one of `KINDS`.
      reader: reads a file of `files`; see `Reader`. None for the user's own files, for which
        `tasks.user_task` makes a task with a reader.
      files: split -> the names of its official file or folder, relative to `data.folder`, tried in
        this order; each also with .gz, .xz, .bz2 or .zst. The splits "train" and "validation" are
        those that a run uses; others are evaluated and predicted on request.
      fields: the columns or keys of the file that the reader takes: the texts, in the order of the
        input.
      label_field: the column or key that has the label.
      labels: the names of the labels, in the order of their ids; () where there are none
        (regression, questions) or where they are read from the training examples.
      metrics: names of the metrics that are reported, keys of `tasks.metrics.METRICS`, the
        selecting one first: the best checkpoint has the largest value of that one.
      recipe: how it is fine-tuned by default.
      formatting: how an example becomes an input; `max_length` is that of the recipe.
      tfds: name of the same data in TensorFlow Datasets ("glue/rte"), or None.
      tfds_splits: split -> its name there, where it differs.
      answerable: question_answering: False if some questions have no answer (SQuAD 2.0).
      submission: split -> the name of the file that the task's server takes ("RTE.tsv").
      submission_labels: label -> its spelling in that file, and in the official files ("1" for
        CoLA's "acceptable"); {} if they have the names as they are.
      label_scale: regression: the targets are divided by it for training, and predictions are
        multiplied by it (STS-B: 5).
      download: what its official files are called and where they are, for messages.
      source: where task and recipe are from, such as "Wang et al. 2019; Liu et al. 2019, Table 10".
    """

    name: str
    title: str
    kind: str
    reader: Reader | None
    files: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    fields: tuple[str, ...] = ()
    label_field: str = "label"
    labels: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)
    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    formatting: Formatting = dataclasses.field(default_factory=Formatting)
    tfds: str | None = None
    tfds_splits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    answerable: bool = True
    submission: Mapping[str, str] = dataclasses.field(default_factory=dict)
    submission_labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    label_scale: float = 1.0
    download: str = ""
    source: str = ""

    def in_own_order(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Labels in the order of the task, the last one being the positive class of its F1.

        A checkpoint may number them otherwise.
        """
        return self.labels if set(self.labels) == set(labels) else tuple(labels)
