"""One folder that every runtime opens: transformers, sentence-transformers, ONNX Runtime, JAX from StableHLO."""

import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.export
import numpy as np

from albert_jax import convert, files, versions
from albert_jax import onnx_runtime as runtime
from albert_jax.convert import hf, mapping
from albert_jax.convert.load import find
from albert_jax.data.speech.symbols import Symbols
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError
from albert_jax.exports import card, onnx, outputs
from albert_jax.model import AlbertConfig
from albert_jax.tasks.squad.answers import Search
from albert_jax.types import Params

FORMATS = ("onnx", "stablehlo")
TOLERANCE = 1e-4  # Between our outputs and a file's, absolute and relative.
# Real sentences of several lengths, for the comparison.
SENTENCES = (
  "Yes.",
  "The film is a delight from its first frame to its last.",
  "In 2010, 92,000 people moved there; by 2019 half of them had left (most of them for good).",
  "She asked whether the library, which had been closed since the flood, would open again before winter, and nobody in "
  "the room, not even the mayor, who had promised as much only a week ago, could say.",
)


class Differs(OSError):
  """A written file computes other outputs than the model."""


def export(
  checkpoint: str | os.PathLike,
  out: str | os.PathLike,
  *,
  formats: Sequence[str] = FORMATS,
  pooling: str = "",
  tokenizer: bool = True,
  license: str = "",
  language: str = "",
  base_model: str = "",
  datasets: str = "",
  name: str = "",
  overwrite: bool = False,
  quantize: str = "",
  calibration: str = "",
  max_loss: float = 0.5,
  fields: str = "text",
  label: str = "label",
  page: str | os.PathLike = "",
  say: Callable[[str], None] = lambda line: None,
) -> dict:
  """Writes a folder that every runtime opens, reopens it, and compares what it computes with the model.

  Args:
    checkpoint: anything `albert_jax.load` reads; for a run's workdir, the card also lists the metrics.
    out: the new folder; it is written atomically.
    formats: of FORMATS, what to write besides the Hugging Face directory.
    pooling: mean or cls: also write the files of sentence-transformers; '' for what the checkpoint says (`retrieve`).
    tokenizer: False allows a checkpoint without a vocabulary.
    license: of the model card; '' leaves it out.
    language: of the model card; '' leaves it out.
    base_model: of the model card; '' for the run's `init_from`.
    datasets: of the model card; '' for the run's `data.dataset`.
    name: of the model card; '' for the name of `out`.
    overwrite: replace what is at `out`.
    quantize: int8 also writes onnx/model_int8.onnx; '' does not.
    calibration: a file of texts like those the model will see, best with labels for a classifier; see
      `calibration.read`.
    max_loss: how many points of its metric, of 100, the int8 model may lose.
    fields: the columns of `calibration` with the text, or the two texts of a pair.
    label: the column with the label.
    page: the new folder of a page that runs the ONNX file in the browser, without a server; '' for none.
    say: called with each line of progress.

  Returns:
    {"files": {name: bytes}, "difference": the largest difference of any output}; with `quantize` also "int8", see
    `quantize.write`; with `page` also "page": {name: bytes}.

  Raises:
    UserError: the checkpoint has no vocabulary, a format or a value is unknown, or int8 loses more than `max_loss`.
    Differs: a written file computes other outputs than the model.
  """
  if unknown := [name for name in formats if name not in FORMATS]:
    raise UserError(f"no format {unknown[0]!r}; use {', '.join(FORMATS)}")
  if not max_loss >= 0:  # Also of NaN.
    raise UserError(f"max_loss={max_loss:g} must be 0 or more points")
  if quantize not in ("", "int8"):
    raise UserError(f"quantize={quantize!r} is unknown; use int8")
  if quantize and not calibration:
    raise UserError("quantize=int8 needs texts like those the model will see; give a file: --calibration=FILE")
  if calibration and not quantize:
    raise UserError("calibration is for quantize=int8; add --quantize=int8")
  if page and not ("onnx" in formats or quantize):
    raise UserError("--page runs the ONNX file; add onnx to --formats")
  if "onnx" in formats or quantize:
    onnx.require(), runtime.require()
  if page:
    from albert_jax.exports import page as pages

    files.check_new_folder(page, overwrite=overwrite)
    if pathlib.Path(out).expanduser().resolve().is_relative_to(pathlib.Path(page).expanduser().resolve()):
      raise UserError(f"--page={page} is or contains --out={out}; give the page a folder of its own")
    say("the page's files from npm")
    pages.fetch()
  cfg, params = convert.load(checkpoint)
  about = convert.about(checkpoint)
  vocabulary = convert.load_symbols(checkpoint) or convert.load_tokenizer(checkpoint, optional=True)
  if tokenizer and vocabulary is None:
    raise UserError(
      f"{checkpoint} has no vocabulary (spiece.model or vocab.txt), without which nobody can use it on texts; put it "
      "there, or export the bare model with --no_tokenizer"
    )
  if page:
    pages.tasks_of(params, about, vocabulary)
  task = _task(about, params)
  pooling = pooling or about.get("pooling", "")
  if pooling not in ("", *onnx.POOLING):
    raise UserError(f"pooling={pooling!r} is unknown; use one of {', '.join(onnx.POOLING)}")
  if pooling:  # Recorded, so that every reader of the folder pools alike.
    about = about | {"pooling": pooling}
  search = {"starts": about.get("start_n_top", Search.start_n_top), "ends": about.get("end_n_top", Search.end_n_top)}
  build = {"task": task, "pooling": pooling, **search}
  workdir = pathlib.Path(checkpoint).expanduser()
  run = workdir if (workdir / "metrics.jsonl").is_file() else None
  report: dict[str, Any] = {"difference": 0.0}
  out = files.user_path(out, "--out")
  with files.writing_folder(out, overwrite=overwrite) as folder:
    say("Hugging Face directory")
    format, place = find(checkpoint)
    stored = hf.read_fields(place) if format is hf else {}
    architecture = (stored.get("architectures") or [None])[0]
    extra = hf.extra_fields(stored) | ({"albert_jax_task": about} if pooling else {})
    _hugging_face(folder, cfg, params, vocabulary, architecture, extra)
    if pooling and not mapping.is_ours(cfg):
      _sentence_transformers(folder, cfg, pooling, about.get("seq_length"))
    batches = sample(cfg, params, vocabulary, task)
    if "onnx" in formats:
      say("onnx/model.onnx")
      (folder / "onnx").mkdir()
      graph = onnx.build(cfg, params, **build, metadata=runtime.metadata_of(about, **search))
      (folder / runtime.FILES["float32"]).write_bytes(graph.SerializeToString())
    if quantize:  # Before StableHLO, which takes longest: it may refuse.
      from albert_jax.exports import quantize as quantization

      report["int8"] = quantization.write(
        folder, cfg, params, vocabulary, about, texts=calibration, max_loss=max_loss, fields=fields, label=label,
        say=say, metadata=runtime.metadata_of(about, **search), **build,
      )  # fmt: skip
    if "stablehlo" in formats:
      say("stablehlo/model.jax")
      (folder / "stablehlo").mkdir()
      (folder / "stablehlo" / "model.jax").write_bytes(outputs.exported(cfg, params, **build).serialize())
    say("comparing what the files compute with the model")
    report["difference"] = compare(folder, cfg, params, batches, **build)
    if run and (run / "curves.png").is_file():
      (folder / "curves.png").write_bytes((run / "curves.png").read_bytes())
    facts = {"license": license, "language": language, "base_model": base_model, "datasets": datasets,
             "name": name or pathlib.Path(out).name}  # fmt: skip
    card.write(folder, cfg, params, task=task, about=about, run=run, facts=facts)
  out = pathlib.Path(out)
  if page:
    report["page"] = pages.write(out, page, name=name or out.name, overwrite=overwrite)
  report["files"] = {
    str(file.relative_to(out)): file.stat().st_size for file in sorted(out.rglob("*")) if file.is_file()
  }
  return report


def export_run(
  out: str | os.PathLike,
  cfg: AlbertConfig,
  params: Params,
  *,
  vocabulary: Tokenizer | Symbols | None,
  architecture: str | None,
  extra: Mapping[str, Any],
  run: Any,
  run_config: Mapping[str, Any],
  name: str,
) -> None:
  """Writes what every complete run leaves: the Hugging Face directory with its card, and sentence-transformers' files.

  The folder is written atomically. Files of the user in it are kept, and so is an edited card.

  Args:
    out: the folder; one that exists is replaced.
    cfg, params, vocabulary, architecture, extra: as for `albert_jax.save`.
    run: the folder of the run on this machine, with metrics.jsonl.
    run_config: the run's config.
    name: the model's name on its card.
  """
  about = extra.get("albert_jax_task", {})
  out, task = pathlib.Path(out), _task(about, params)
  with files.writing_folder(out, keep_others=True) as folder:
    _hugging_face(folder, cfg, params, vocabulary, architecture, extra)
    if (pooling := about.get("pooling", "")) and not mapping.is_ours(cfg):
      _sentence_transformers(folder, cfg, pooling, about.get("seq_length"))
    card.write(folder, cfg, params, task=task, about=about, run=run,
               run_config=run_config, facts={"name": name})  # fmt: skip
    if (edited := out / "README.md").is_file() and card.is_edited(edited):
      shutil.copyfile(edited, folder / "README.md")


def _task(about, params):
  """Returns the task that the graph's outputs are for; '' for another, such as an encoder for speech."""
  task = about.get("name") or ("fill-mask" if "mlm" in params else "")
  return task if task in onnx.TASKS else ""  # The heads of other tasks are not in the graph.


def _hugging_face(folder, cfg, params, vocabulary, architecture, extra):
  written = hf.to_fields(cfg, params, architecture=architecture)["architectures"][0]
  if written == "AlbertModel" and "pooler" not in params:
    # transformers' class has a pooler and warns where the file has none. Zeros, which `load` leaves out.
    D = cfg.hidden_size
    params = params | {"pooler": {"kernel": np.zeros((D, D), np.float32), "bias": np.zeros(D, np.float32)}}
  hf.save(folder, cfg, params, vocabulary=vocabulary, architecture=architecture, extra=extra, overwrite=True)


def _sentence_transformers(folder, cfg, pooling, seq_length):
  """Writes the files that tell sentence-transformers how to pool and normalize."""
  module = "sentence_transformers.models"
  modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
  length = min(seq_length or cfg.max_position_embeddings, cfg.max_position_embeddings)
  written = {
    "modules.json": [
      {"idx": i, "name": str(i), "path": path, "type": f"{module}.{kind}"} for i, (path, kind) in enumerate(modules)
    ],
    "sentence_bert_config.json": {"max_seq_length": length, "do_lower_case": False},
    "config_sentence_transformers.json": {
      "__version__": {"albert_jax": versions.installed()},
      "prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine",
    },
    "1_Pooling/config.json": {
      "word_embedding_dimension": cfg.hidden_size,
      "pooling_mode_cls_token": pooling == "cls",
      "pooling_mode_mean_tokens": pooling == "mean",
      **dict.fromkeys(("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens",
                       "pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken"), False),
      "include_prompt": True,
    },
    "2_Normalize/config.json": {},
  }  # fmt: skip
  for name, value in written.items():
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def sample(cfg: AlbertConfig, params: Params, vocabulary: Any, task: str) -> list[dict]:
  """Returns batches for the comparison: padded sentences, and a row of 128 tokens."""
  longest = cfg.max_position_embeddings
  if not isinstance(vocabulary, Tokenizer):
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, cfg.vocab_size, length).tolist() for length in (6, 15, 40, 70)]
  else:
    texts = [[vocabulary.cls_id, *ids, vocabulary.sep_id] for ids in vocabulary.encode_batch(list(SENTENCES))]
  texts = [ids[:longest] for ids in texts]
  long = (texts[-1] * 128)[: min(longest, 128)]

  def batch(rows):
    width = max(map(len, rows))
    ids, mask, types = (np.zeros((len(rows), width), np.int32) for _ in range(3))
    for i, row in enumerate(rows):
      ids[i, : len(row)], mask[i, : len(row)], types[i, len(row) // 2 : len(row)] = row, 1, 1
    made = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types % cfg.type_vocab_size}
    if "squad_v2" in params:
      made["allowed"] = mask.copy()
    return {name: value.reshape(-1, 2, width) if task == "choose" else value for name, value in made.items()}

  return [batch(texts), batch([long, texts[0]])]


def compare(folder: str | os.PathLike, cfg: AlbertConfig, params: Params, batches: list[dict], **build: Any) -> float:
  """Returns the largest difference between what the files in `folder` and the model compute.

  Args:
    folder: the exported folder.
    cfg, params: the model.
    batches: inputs, see `sample`.
    build: task, pooling, starts and ends, as for `onnx.build`.

  Raises:
    Differs: a file differs by more than TOLERANCE, or has other outputs.
  """
  functions = {}
  path = pathlib.Path(folder) / runtime.FILES["float32"]
  if path.is_file():
    opened = runtime.session(path)
    functions[runtime.FILES["float32"]] = lambda batch: runtime.run(opened, batch)
  path = pathlib.Path(folder) / "stablehlo" / "model.jax"
  if path.is_file():
    functions["stablehlo/model.jax"] = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
  reference = jax.jit(lambda params, batch: outputs.outputs(cfg, params, batch, **build))
  # Read again from the folder, so that the Hugging Face directory is compared too.
  _, stored = convert.load(folder)
  largest = 0.0
  for batch in batches:
    expected = jax.device_get(reference(params, batch))
    results = {"model.safetensors": jax.device_get(reference(stored, batch))}
    results |= {name: jax.device_get(run(batch)) for name, run in functions.items()}
    for name, values in results.items():
      if values.keys() != expected.keys():
        raise Differs(f"{name} has the outputs {sorted(values)}, the model {sorted(expected)}")
      for output, value in values.items():
        largest = max(largest, _difference(name, output, value, expected[output], batch))
  return largest


def _difference(name, output, value, expected, batch):
  if output.endswith("index"):  # Equal scores have no order; the scores are compared.
    return 0.0
  mask = batch["attention_mask"].reshape(-1, batch["attention_mask"].shape[-1]) > 0
  if expected.shape[:2] == mask.shape and output not in ("pooler_output", "sentence_embedding"):
    value, expected = value[mask], expected[mask]  # Outputs at padding are not used.
  keep = np.abs(expected) < 1e9  # Lower is the logit of a position that is not allowed.
  difference = float(np.max(np.abs(value - expected)[keep], initial=0))
  if not np.allclose(value[keep], expected[keep], atol=TOLERANCE, rtol=TOLERANCE):
    raise Differs(f"{name}: {output} differs from the model's by {difference:.2g}; expected less than {TOLERANCE:g}")
  return difference
