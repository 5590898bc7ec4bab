"""What every kind of task provides, from its examples to its scores."""

import abc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from roberta_jax.tasks.examples import Example
from roberta_jax.tasks.features import Features
from roberta_jax.tasks.task import Formatting, Task

if TYPE_CHECKING:
    import flax.linen as nn

    from roberta_jax.tokenizer import RobertaTokenizer

Prediction = dict[str, Any]


class Kind(abc.ABC):
    """A kind of task, made for one task and one list of labels.

    Args:
      task: the task.
      labels: the names of the labels in the order of the model's ids; () where there are none.
      formatting: how examples become inputs.
    """

    # The parts of the head that are new where the model to start from has none; see
    # `weights.load.from_pretrained`.
    new_head: ClassVar[tuple[str, ...]] = ("classifier",)
    # Whether the first axis of a row's outputs has the length of the input.
    per_token: ClassVar[bool] = False

    def __init__(self, task: Task, labels: Sequence[str], formatting: Formatting):
        self.task, self.labels, self.formatting = task, tuple(labels), formatting

    @property
    @abc.abstractmethod
    def model_class(self) -> type["nn.Module"]:
        """The head that is trained: it has `loss`, `count`, `loss_of` and `TARGETS`."""

    @abc.abstractmethod
    def config_changes(self) -> dict[str, Any]:
        """Fields of `RobertaConfig` that the head needs: `id2label`, `problem_type`."""

    @abc.abstractmethod
    def encode(self, examples: Sequence[Example], tokenizer: "RobertaTokenizer") -> Features:
        """The rows of a split, in the order of the examples, with the targets as columns.

        The columns are the keywords that the head's `loss` takes, and `fill` has a value for each.
        Where an example has no label, its target is that of `fill`. What cannot be used is left out
        and counted in `Features.skipped`.

        Raises:
          UsageError: an example has a label that is not one of `labels`, or no example is left.
        """

    @abc.abstractmethod
    def fill(self) -> Mapping[str, Any]:
        """Column -> its value in a row that only fills up a batch: it counts in no loss."""

    @abc.abstractmethod
    def outputs(self, output: Any) -> dict[str, Any]:
        """What predictions need of the model's output: arrays [B, ...]; called under jit."""

    @abc.abstractmethod
    def predictions(
        self,
        examples: Sequence[Example],
        features: Features,
        outputs: Mapping[str, Sequence[np.ndarray]],
    ) -> list[Prediction]:
        """The predictions for all examples, in their order.

        Args:
          examples: those of the split.
          features: from `encode`.
          outputs: from `outputs`, as one array per row of the features, without the padding where
            an axis has the length of the input.

        Returns:
          Values that JSON can hold, which start with "id" and "prediction".
        """

    @abc.abstractmethod
    def scores(
        self, examples: Sequence[Example], predictions: Sequence[Prediction]
    ) -> dict[str, float]:
        """The task's metrics by name, on the scale of their official scripts.

        That is from 0 to 1, and per cent for SQuAD. Examples without a label do not count; {} if
        none has one.
        """

    @abc.abstractmethod
    def baseline(self, train: Sequence[Example]) -> Any:
        """What the simplest baseline, which does not look at the input, predicts for every example.

        The commonest label of the training examples, or their mean: a value that JSON can hold, for
        `constant`. None where there is none.
        """

    def constant(self, value: Any, examples: Sequence[Example]) -> list[Prediction]:
        """The predictions of the baseline for some examples, given its value."""
        return [{"id": each.id, "prediction": value} for each in examples]

    def majority(
        self, train: Sequence[Example], examples: Sequence[Example]
    ) -> list[Prediction] | None:
        """The predictions of the baseline of the training examples; None where there is none."""
        value = self.baseline(train)
        return None if value is None else self.constant(value, examples)

    def files(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Files of predictions in the formats of the task's own scripts: name -> JSON value."""
        return {}

    def with_choices(self, scores: Mapping[str, float]) -> "Kind":
        """This kind with what was chosen on one split fixed, for predictions of other splits.

        Args:
          scores: from `scores`, of the split that the choice was made on.
        """
        return self
