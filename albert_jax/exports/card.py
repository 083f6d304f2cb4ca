"""The model card of an exported folder: README.md with YAML front matter, as model hubs read it."""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from albert_jax import strict_json
from albert_jax.convert import hf
from albert_jax.errors import UserError
from albert_jax.model import AlbertConfig, param_count
from albert_jax.types import Params

PIPELINE_TAGS = {
  "fill-mask": "fill-mask", "classify": "text-classification", "answer": "question-answering",
  "tag": "token-classification", "choose": "multiple-choice", "embed": "sentence-similarity",
  "summarize": "summarization", "": "feature-extraction",
}  # fmt: skip
# The argument of the card's example call, by task.
EXAMPLES = {
  "fill-mask": '"The [MASK] is open."', "classify": '"A fine film."',
  "answer": '{"question": "Who came?", "context": "Ann came late."}', "tag": '"Ann came from Oslo."',
  "choose": '{"context": "It rains.", "question": "What is wet?", "options": ["the road", "the sun"]}',
  "embed": '"A sentence."', "summarize": '"First sentence. Second sentence."',
}  # fmt: skip
PAIR = '{"text": "A first text.", "pair": "A second text."}'  # of a classifier of pairs
# The example inputs of an ONNX file, by its form: texts for the tokenizer; a line that changes the tokenizer's arrays
# `batch`; ids for a folder without tokenizer; and an input that is made of these ids.
_SHAPED = {
  "choose": (
    '["It rains."] * 2, ["What is wet? the road", "What is wet? the sun"], padding=True',
    "batch = {name: value[None] for name, value in batch.items()}  # [batch, options, tokens]\n",
    "[[[2, 13, 9, 3], [2, 14, 9, 3]]]", "",
  ),
  "beam": (
    '["Who came?"], ["Ann came late."]',
    'batch["allowed"] = batch["token_type_ids"]  # where an answer may be\n',
    "[[2, 13, 3, 9, 15, 8, 9, 15, 8, 9, 15, 8, 3]]", ', "allowed": (ids > 3) * 1',
  ),
  "": ('["A sentence."]', "", "[[2, 13, 9, 3]]", ""),
}  # fmt: skip
# Numbers of metrics.jsonl that do not measure the quality of the model.
_NOT_METRICS = ("step", "split", "tokens_per_s", "tokens", "input_stall", "padding")


def write(
  folder: str | os.PathLike, cfg: AlbertConfig, params: Params, *, task: str, about: Mapping[str, Any], run: Any = None,
  run_config: Mapping[str, Any] | None = None, facts: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
  """Writes `folder`/README.md about the files in the folder.

  Args:
    folder: the exported folder.
    cfg: the model.
    params: its parameters.
    task: a pipeline's task, or ''.
    about: the facts about its task, see `convert.about`.
    run: the workdir of the run that trained it, with metrics.jsonl; None where there is none.
    run_config: the run's config; None reads the run's config.json.
    facts: {"license", "language", "base_model", "datasets", "name"} as the user set them; '' or absent if not set.
      `base_model` and `datasets` default to the run's.
  """
  folder, facts = pathlib.Path(folder), {key: value for key, value in (facts or {}).items() if value}
  config = run_config if run_config is not None else _read_json(pathlib.Path(run) / "config.json") if run else {}
  step, metrics = measured(run, config) if run else (0, {})
  data = config.get("data", {}).get("dataset", "")
  facts.setdefault("datasets", pathlib.PurePath(data.split(",")[0]).name if data else "")
  facts.setdefault("base_model", pathlib.PurePath(config.get("init_from", "")).name)
  name = facts.get("name") or folder.name
  header = {
    "license": facts.get("license"),
    "language": facts.get("language"),
    "library_name": _library(folder),
    "pipeline_tag": PIPELINE_TAGS[task],
    "tags": _tags(folder),
    "datasets": [facts["datasets"]] if facts["datasets"] else None,
    "metrics": sorted(metrics) or None,
    "base_model": facts["base_model"] or None,
    "model-index": _index(name, task, facts["datasets"], metrics) if metrics and facts["datasets"] else None,
  }
  # A JSON value is YAML too, so that no name can break the header.
  lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in header.items() if value]
  text = "\n".join(
    ["---", *lines, "---", "", f"# {name}", "", _about(cfg, param_count(params), task, about.get("labels", ())), ""]
  )
  if metrics:
    rows = "".join(f"| {key} | {value:.4f} |\n" for key, value in sorted(metrics.items()))
    text += (
      f"\n## Results\n\nHeld-out data of `{facts['datasets']}`, step {step:,}.\n\n| metric | value |\n|---|---|\n{rows}"
    )
  if (folder / "curves.png").is_file():
    text += "\n![training and held-out metrics](curves.png)\n"
  form = "beam" if "squad_v2" in params else task if task == "choose" else ""
  text += "\n## How to load it\n" + "".join(
    f"\n{title}\n```python\n{code}\n```\n" for title, code in _loading(folder, task, bool(about.get("pair")), form)
  )
  (folder / "README.md").write_text(f"{text}\n{_mark(text)}\n", "utf-8")


def is_edited(file: Any) -> bool:
  """Returns whether a README.md differs from what `write` wrote."""
  text, _, mark = pathlib.Path(file).read_text("utf-8", "replace").removesuffix("\n").rpartition("\n")
  return mark != _mark(text)


def _mark(text):
  """Returns the last line of a card: a hash of its text, which shows whether the card was edited."""
  return f"<!-- Written by albert_jax: {hashlib.sha256(text.encode()).hexdigest()[:16]} -->"


def measured(run: Any, config: Any) -> tuple[int, dict]:
  """Returns (step, {metric: number}) of a run's held-out data: the best by config.best, else the last."""
  file = pathlib.Path(run) / "metrics.jsonl"
  text = file.read_text("utf-8", "replace") if file.is_file() else ""
  lines = [line for line in strict_json.sound_objects(text) if line.get("split") == "eval"]
  best = config.get("best", "")
  if not lines:
    return 0, {}
  scored = [line for line in lines if isinstance(line.get(best), int | float)]
  choose = min if best.endswith("loss") else max
  line = choose(scored, key=lambda line: line[best]) if scored else lines[-1]
  return line.get("step", 0), {
    key: value for key, value in line.items()
    if key not in _NOT_METRICS and isinstance(value, int | float) and value == value
  }  # fmt: skip


def _read_json(path):
  try:
    return strict_json.read_object(path)
  except UserError:
    return {}


def _library(folder):
  """Returns the name of the library that opens the folder, for model hubs."""
  if (folder / "modules.json").is_file():
    return "sentence-transformers"
  return "albert-jax" if _is_ours(folder) else "transformers"


def _is_ours(folder):
  """Returns whether transformers refuses to open the folder."""
  return _read_json(folder / "config.json").get("model_type") == hf.OWN_TYPE


def _tags(folder):
  names = {"onnx": "onnx", "modules.json": "sentence-transformers", "stablehlo": "stablehlo",
           "model.safetensors": "safetensors"}  # fmt: skip
  return ["albert", "jax", *(tag for name, tag in names.items() if (folder / name).exists())]


def _index(name, task, dataset, metrics):
  results = [{"type": key, "value": round(value, 6), "name": key} for key, value in sorted(metrics.items())]
  about = {"task": {"type": PIPELINE_TAGS[task]}, "dataset": {"name": dataset, "type": dataset}, "metrics": results}
  return [{"name": name, "results": [about]}]


def _about(cfg, parameters, task, labels):
  shown = f" Labels: {', '.join(map(str, labels[:20]))}{', …' if len(labels) > 20 else ''}." if labels else ""
  shared = "shared by all layers" if cfg.share == "all" and cfg.groups == 1 else f"share={cfg.share}"
  shared += ", arch=modern" if cfg.arch == "modern" else ""
  shared += f", {cfg.unshared_ends} at each end unshared" if cfg.unshared_ends else ""
  return (
    f"An ALBERT encoder{f' for the task {task}' if task else ''}: {parameters:,} parameters, {cfg.num_hidden_layers} "
    f"layers ({shared}), hidden size {cfg.hidden_size}, {cfg.num_attention_heads} heads, vocabulary "
    f"{cfg.vocab_size:,}, {cfg.max_position_embeddings} positions.{shown}"
  )


def _loading(folder, task, is_pair, form):
  """Yields (title, code) for each runtime that the folder has files for; `form` is of _SHAPED."""
  example = PAIR if is_pair else EXAMPLES.get(task, '"A sentence."')
  if task:
    yield "albert_jax:", f'import albert_jax\n\nmodel = albert_jax.pipeline("{task}", "DIR")\nmodel({example})'
  else:
    yield "albert_jax:", 'import albert_jax\n\ncfg, params = albert_jax.load("DIR")'
  if _is_ours(folder):
    pass  # transformers refuses to open it.
  elif task in ("fill-mask", "classify", "tag"):
    tag, example = PIPELINE_TAGS[task], example.replace('"pair"', '"text_pair"')
    yield "transformers:", f'from transformers import pipeline\n\nmodel = pipeline("{tag}", "DIR")\nmodel({example})'
  else:
    yield (
      "transformers:",
      'from transformers import AutoModel, AutoTokenizer\n\ntokenizer = AutoTokenizer.from_pretrained("DIR")\n'
      'model = AutoModel.from_pretrained("DIR")',
    )
  if (folder / "modules.json").is_file():
    yield (
      "sentence-transformers:",
      'from sentence_transformers import SentenceTransformer\n\nmodel = SentenceTransformer("DIR")\n'
      'model.encode(["A sentence."])',
    )
  texts, change, ids, more = _SHAPED[form]
  bare = f'{{"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0{more}}}'
  for file in sorted(folder.glob("onnx/*.onnx")):
    # AutoTokenizer warns of a model that transformers does not know.
    kind = "PreTrainedTokenizerFast" if _is_ours(folder) else "AutoTokenizer"
    start = f"import onnxruntime\nfrom transformers import {kind}\n\n"
    start += f'tokenizer = {kind}.from_pretrained("DIR")\n'
    start += f'batch = dict(tokenizer({texts}, return_tensors="np", return_token_type_ids=True))\n{change}'
    if not (folder / "tokenizer_config.json").is_file():
      start = f"import numpy as np\nimport onnxruntime\n\nids = np.array({ids})\nbatch = {bare}\n"
    yield (
      f"ONNX Runtime, `onnx/{file.name}` ({file.stat().st_size / 1e6:.1f} MB):",
      f'{start}session = onnxruntime.InferenceSession("DIR/onnx/{file.name}")\nsession.run(None, batch)',
    )
  if (folder / "stablehlo").is_dir():
    yield (
      "JAX without this package (StableHLO; any batch, any length):",
      "import pathlib\n\nimport jax.export\nimport numpy as np\n\n"
      'model = jax.export.deserialize(pathlib.Path("DIR/stablehlo/model.jax").read_bytes())\n'
      f"ids = np.array({ids}, np.int32)\nmodel.call({bare})",
    )
