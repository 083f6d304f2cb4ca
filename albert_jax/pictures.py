"""Pictures of what a model does: attention, how far each layer moves its input, confusion and reliability."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from albert_jax import convert, curves, files, model, strict_json
from albert_jax.errors import UserError

LONGEST = 48  # tokens of a text whose attention is drawn; more cannot be read
MOST_LABELS = 30  # rows of a confusion matrix
BINS = 10  # of a reliability curve
# A scale from white to dark blue: equal steps of lightness, which colour-blind readers and printers keep apart.
SCALE = "Blues"


@dataclasses.dataclass(frozen=True)
class Predictions:
  """What a classifier answered on a held-out split.

  Attributes:
    labels: their names, in the order of the outputs.
    gold: int [n], the right label of each row.
    probabilities: float [n, C].
  """

  labels: tuple[str, ...]
  gold: np.ndarray
  probabilities: np.ndarray


def read_predictions(path: str | os.PathLike) -> Predictions:
  """Reads the answers of a run of configs/classify.py or configs/glue.py.

  Args:
    path: the workdir of a complete run, or a file predictions.jsonl that `albert-jax evaluate --out=DIR` wrote.

  Raises:
    UserError: there are no answers, they have no probabilities, or the right labels are not known.
  """
  path = files.user_path(path).rstrip("/")
  file = path if path.endswith(".jsonl") else f"{path}/predictions/predictions.jsonl"
  if not files.exists(file):
    raise UserError(
      f"{path} has no predictions/predictions.jsonl; give a complete run of a classifier, or a file that albert-jax "
      "evaluate --checkpoint=RUN --out=DIR wrote"
    )
  rows = []
  for number, text in enumerate(files.read(file).decode("utf-8").splitlines(), 1):
    try:
      row = strict_json.loads(text, "the line", dict)
      rows.append((row["gold"], row["probabilities"]))
    except (ValueError, TypeError, KeyError) as error:
      raise UserError(
        f"{file}, line {number}: expected an object with gold and probabilities, as a classifier writes; got "
        f"{text[:60]!r}"
      ) from error
  if not rows:
    raise UserError(f"{file} is empty; there is nothing to draw")
  labels = tuple(rows[0][1])
  if any(not isinstance(gold, str) or gold not in labels or tuple(scores) != labels for gold, scores in rows):
    raise UserError(f"{file}: expected one label a row, out of {', '.join(labels[:8])}; several labels are not drawn")
  numbers = {label: i for i, label in enumerate(labels)}
  return Predictions(
    labels,
    np.array([numbers[gold] for gold, _ in rows]),
    np.array([[scores[label] for label in labels] for _, scores in rows], float),
  )


def confusion(predictions: Predictions) -> np.ndarray:
  """Counts int [C, C]: rows with the right label (first axis) for which the model answered a label (second axis)."""
  size = len(predictions.labels)
  answers = predictions.probabilities.argmax(axis=1)
  return np.bincount(predictions.gold * size + answers, minlength=size**2).reshape(size, size)


def reliability(predictions: Predictions, bins: int = BINS) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
  """Compares how sure the model is with how often it is right, in bins of equal width.

  Args:
    predictions: of a classifier.
    bins: how many, between 0 and 1.

  Returns:
    (mean probability of the answers [k], share of them that are right [k], number of rows [k], expected calibration
    error), for the k bins that have rows.
  """
  sure = predictions.probabilities.max(axis=1)
  is_right = predictions.probabilities.argmax(axis=1) == predictions.gold
  bin_of = np.minimum((sure * bins).astype(int), bins - 1)
  counts = np.bincount(bin_of, minlength=bins)
  used = counts > 0
  mean_sure = np.bincount(bin_of, sure, bins)[used] / counts[used]
  share_right = np.bincount(bin_of, is_right, bins)[used] / counts[used]
  error = float(np.sum(counts[used] * np.abs(mean_sure - share_right)) / len(sure))
  return mean_sure, share_right, counts[used], error


def depth(hidden: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Compares the input of each layer with its output, as figure 1 of the paper does.

  Args:
    hidden: [N + 1, B, L, D], see model.by_layer.
    mask: bool [B, L], which positions are tokens.

  Returns:
    (cosine similarity [N], Euclidean distance [N]), means over tokens.
  """
  before, after = (np.asarray(part, np.float64)[:, mask] for part in (hidden[:-1], hidden[1:]))
  norms = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
  cosine = np.sum(before * after, axis=-1) / np.maximum(norms, 1e-12)
  return cosine.mean(axis=1), np.linalg.norm(after - before, axis=-1).mean(axis=1)


def plot_confusion(path: str | os.PathLike, out: str | os.PathLike) -> str:
  """Draws the confusion matrix of a classifier; returns a line about it. See `read_predictions` for `path`."""
  predictions = read_predictions(path)
  counts = confusion(predictions)
  if len(counts) > MOST_LABELS:
    raise UserError(f"{path} has {len(counts)} labels; a confusion matrix of more than {MOST_LABELS} cannot be read")
  _save(draw_confusion(counts, predictions.labels), out)
  return f"{np.trace(counts)} of {counts.sum()} rows are right"


def draw_confusion(counts: np.ndarray, labels: Sequence[str]) -> Any:
  """A matplotlib figure of `confusion`: each row's colour is its share, each cell's number its count."""
  size = len(labels)
  figure = _figure(2.2 + 0.55 * size, 1.8 + 0.5 * size)
  axes = figure.add_subplot()
  shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
  axes.imshow(shares, cmap=SCALE, vmin=0, vmax=1)
  for i in range(size):
    for j in range(size):
      colour = "white" if shares[i, j] > 0.55 else "black"
      axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=colour, fontsize=8)
  axes.set_xticks(range(size), labels, rotation=45, ha="right", fontsize=8)
  axes.set_yticks(range(size), labels, fontsize=8)
  axes.set_xlabel("the model's answer")
  axes.set_ylabel("the right label")
  return figure


def plot_reliability(paths: Sequence[str | os.PathLike], out: str | os.PathLike, names: Sequence[str]) -> str:
  """Draws the reliability curves of classifiers; returns a line about them. See `read_predictions` for `paths`."""
  results = {name: reliability(read_predictions(path)) for name, path in zip(names, paths, strict=True)}
  _save(draw_reliability(results), out)
  return ", ".join(f"{name}: expected calibration error {result[3]:.3f}" for name, result in results.items())


def draw_reliability(results: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, float]]) -> Any:
  """A matplotlib figure of `reliability` by name: a calibrated model lies on the dashed line."""
  figure = _figure(4.8, 4.6)
  axes = figure.add_subplot()
  axes.plot((0, 1), (0, 1), color="0.35", linestyle="--", linewidth=1, label="calibrated")
  for k, (name, (sure, right, counts, error)) in enumerate(results.items()):
    colour, marker = curves.COLOURS[k % len(curves.COLOURS)], curves.MARKERS[k % len(curves.MARKERS)]
    axes.plot(sure, right, color=colour, linewidth=1.5, label=f"{name} (error {error:.3f})")
    axes.scatter(sure, right, s=15 + 120 * counts / counts.sum(), color=colour, marker=marker)
  axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="probability of the answer", ylabel="share of answers that are right")
  axes.legend(frameon=False, fontsize=8, loc="upper left")
  _plain(axes)
  return figure


def plot_depth(
  paths: Sequence[str | os.PathLike], out: str | os.PathLike, names: Sequence[str], texts: Sequence[str]
) -> str:
  """Draws how far each layer moves its input, for one or more checkpoints; returns a line about it.

  Args:
    paths: checkpoints, see `albert_jax.load`.
    out: the picture.
    names: their names in the picture.
    texts: what the models read.
  """
  results = {}
  for name, path in zip(names, paths, strict=True):
    cfg, params, _, batch = _encoded(path, texts)
    results[name] = depth(np.asarray(model.by_layer(cfg, params, batch)["hidden"]), batch["attention_mask"] > 0)
  _save(draw_depth(results), out)
  return f"{len(texts)} {'texts' if len(texts) > 1 else 'text'}"


def draw_depth(results: dict[str, tuple[np.ndarray, np.ndarray]]) -> Any:
  """A matplotlib figure of `depth` by name."""
  from matplotlib.ticker import MaxNLocator

  figure = _figure(8.4, 3.2)
  for i, title in enumerate(("cosine similarity of input and output", "distance of input and output")):
    axes = figure.add_subplot(1, 2, i + 1)
    for k, (name, values) in enumerate(results.items()):
      layers = range(1, len(values[i]) + 1)
      colour, marker = curves.COLOURS[k % len(curves.COLOURS)], curves.MARKERS[k % len(curves.MARKERS)]
      axes.plot(layers, values[i], color=colour, marker=marker, markersize=4, label=name)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("layer", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.05)
    if len(results) > 1:
      axes.legend(frameon=False, fontsize=8)
    _plain(axes)
  return figure


def plot_attention(path: str | os.PathLike, out: str | os.PathLike, text: str) -> str:
  """Draws the attention maps of a checkpoint on one text, a panel for each layer and head; returns a line about it."""
  cfg, params, tokens, batch = _encoded(path, [text])
  if len(tokens[0]) > LONGEST:
    raise UserError(f"the text has {len(tokens[0])} tokens; attention maps of more than {LONGEST} cannot be read")
  _save(draw_attention(np.asarray(model.by_layer(cfg, params, batch)["attention"])[:, 0], tokens[0]), out)
  return f"{cfg.num_hidden_layers} layers of {cfg.num_attention_heads} heads, {len(tokens[0])} tokens"


def draw_attention(weights: np.ndarray, tokens: Sequence[str]) -> Any:
  """A matplotlib figure of attention weights.

  Args:
    weights: [N, H, L, L], see model.by_layer.
    tokens: L strings.
  """
  layers, heads, length = weights.shape[:3]
  # Names of tokens where the panels are large enough to read them, else only along the left and the bottom edge.
  side = 1.1 + 0.11 * length if layers * heads <= 16 else 1.3
  figure = _figure(min(60, 1.2 + side * heads), min(60, 1.2 + side * layers))
  grid = figure.subplots(layers, heads, squeeze=False, sharex=True, sharey=True)
  for n in range(layers):
    for h in range(heads):
      axes = grid[n, h]
      axes.imshow(weights[n, h], cmap=SCALE, vmin=0, vmax=1)
      axes.set_xticks(range(length), tokens, rotation=90, fontsize=6)
      axes.set_yticks(range(length), tokens, fontsize=6)
      axes.tick_params(length=0)
      if not n:
        axes.set_title(f"head {h + 1}", fontsize=8)
      if not h:
        axes.set_ylabel(f"layer {n + 1}", fontsize=8)
  figure.suptitle("row: the reading token; column: what it reads; dark: weight 1", fontsize=8)
  return figure


def _encoded(path, texts):
  """(config, params, tokens of each text, padded batch) of a checkpoint."""
  cfg, params = convert.load(path)
  tokenizer = convert.load_tokenizer(path)
  rows = [[tokenizer.cls_id, *tokenizer.encode(text, specials=True), tokenizer.sep_id] for text in texts]
  if (length := max(map(len, rows))) > cfg.max_position_embeddings:
    raise UserError(f"a text has {length} tokens, the model has {cfg.max_position_embeddings} positions; shorten it")
  ids = np.full((len(rows), length), tokenizer.pad_id, np.int32)
  mask = np.zeros_like(ids)
  for i, row in enumerate(rows):
    ids[i, : len(row)], mask[i, : len(row)] = row, 1
  tokens = [[tokenizer.pieces[i].replace("▁", " ").strip() or "_" for i in row] for row in rows]
  return cfg, params, tokens, {"input_ids": ids, "attention_mask": mask}


def _figure(width, height):
  from matplotlib.figure import Figure  # Takes a second to import.

  return Figure(figsize=(width, height), layout="constrained")


def _plain(axes):
  axes.grid(alpha=0.25)
  axes.tick_params(labelsize=8)
  axes.spines[["top", "right"]].set_visible(False)


def _save(figure, out):
  """Writes a figure as .png, .svg or .pdf."""
  if pathlib.PurePath(out).suffix not in curves.FORMATS:
    raise UserError(f"--out={out}: a picture ends in one of {', '.join(curves.FORMATS)}, as --out=picture.png")
  files.write_figure(out, figure)
