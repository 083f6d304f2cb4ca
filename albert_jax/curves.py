"""The curves of a run as one picture."""

import pathlib

from albert_jax.training.writer import read


def plot(workdir, baselines) -> bool:
  """Draws `metrics.jsonl` of a run into `curves.png` beside it: one panel a metric, training and held-out.

  Args: baselines: {metric: (value, what it is)}, drawn as dashed lines.
  Returns: whether there was anything to draw; held-out rows without labels have no metrics.
  """
  from matplotlib.figure import Figure  # Takes a second to import, and only a run's end needs it.

  lines = read(workdir)
  names = [name for name in baselines if any(name in line for line in lines)]
  if not names:
    return False
  figure = Figure(figsize=(5 * len(names), 3.5), layout="constrained")
  for i, name in enumerate(names):
    axes = figure.add_subplot(1, len(names), i + 1)
    for split, style in (("train", {"alpha": 0.6}), ("eval", {"marker": "o", "markersize": 3})):
      points = [(line["step"], line[name]) for line in lines if line["split"] == split and name in line]
      if points:
        axes.plot(*zip(*points, strict=True), label={"train": "training", "eval": "held-out"}[split], **style)
    value, what = baselines[name]
    axes.axhline(value, color="grey", linestyle="--", label=what)
    axes.set(title=name.replace("_", " "), xlabel="step")
    axes.legend()
  figure.savefig(pathlib.Path(workdir) / "curves.png", dpi=100)
  return True
