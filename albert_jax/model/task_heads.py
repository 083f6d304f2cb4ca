"""The heads of fine-tuning tasks: their names, their shapes, and the transformers classes that open them.

Conversion and the tasks both read this. A head is a part of the parameter tree beside the model's own parts; its
computation is in the file of its task.
"""

from collections.abc import Callable

# {head: (hidden size D, number of classes C) -> {path: shape}}. Only the tensors of a checkpoint tell C.
HEADS: dict[str, Callable[[int, int], dict[str, tuple[int, ...]]]] = {
  "classifier": lambda D, C: {"kernel": (D, C), "bias": (C,)},  # of a sequence, of each token, or of choices (C = 1)
  "span": lambda D, C: {"kernel": (D, C), "bias": (C,)},  # start and end of an answer: C = 2
  # The end of an answer given its start, and whether there is one (run_squad_v2.py of the original).
  "squad_v2": lambda D, C: {
    "start/kernel": (D, 1), "start/bias": (1,),
    "end/dense_0/kernel": (2 * D, D), "end/dense_0/bias": (D,),
    "end/norm/scale": (D,), "end/norm/bias": (D,),
    "end/dense_1/kernel": (D, 1), "end/dense_1/bias": (1,),
    "answer/dense_0/kernel": (2 * D, D), "answer/dense_0/bias": (D,),
    "answer/dense_1/kernel": (D, 1),
  },
  "sentence": lambda D, C: {"kernel": (D, 1), "bias": (1,)},  # whether a sentence belongs to a summary
  "phoneme": lambda D, C: {"kernel": (D, C), "bias": (C,)},  # of PL-BERT, at each position
  "word": lambda D, C: {"kernel": (D, C), "bias": (C,)},  # likewise
}  # fmt: skip

# {class of transformers: the pipeline task that a checkpoint of it is for}.
CLASSES = {
  "AlbertForSequenceClassification": "classify", "AlbertForTokenClassification": "tag",
  "AlbertForQuestionAnswering": "answer", "AlbertForMultipleChoice": "choose", "AlbertForMaskedLM": "fill-mask",
  "AlbertForPreTraining": "fill-mask",
}  # fmt: skip


def pattern(head: str) -> str:
  """Returns the regular expression of all parameter paths of a head."""
  return f"^{head}/"


def class_for(task: str) -> str:
  """Returns the class of transformers for a pipeline task of CLASSES."""
  return next(name for name, purpose in CLASSES.items() if purpose == task)
