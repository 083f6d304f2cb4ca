"""The outputs of an exported graph as a JAX function: the reference for ONNX files, and the body of StableHLO."""

import dataclasses
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from albert_jax import model
from albert_jax.model import AlbertConfig
from albert_jax.tasks import heads, retrieve
from albert_jax.tasks.squad import heads as squad_heads
from albert_jax.tasks.squad.answers import Search


def outputs(
  cfg: AlbertConfig, params: dict, batch: dict, *, task: str = "", pooling: str = "", starts: int = 5, ends: int = 5
) -> dict:
  """Returns the outputs of `onnx.build`, by the same names and with the same meaning.

  Args:
    cfg: the model; its `dtype` is ignored, outputs are float32.
    params: a parameter tree with any heads.
    batch: input_ids, attention_mask, token_type_ids [B, L], or [B, C, L] for task="choose"; `allowed` [B, L] for the
      "squad_v2" head.
    task, pooling, starts, ends: as in `onnx.build`.

  Returns:
    {name: array}.
  """
  cfg = dataclasses.replace(cfg, dtype="float32", attention="xla")
  lead = batch["input_ids"].shape[:-1]
  inputs = {name: value.reshape(-1, value.shape[-1]) for name, value in batch.items()}
  out = model.apply(cfg, params, model.inputs(inputs))
  x_BLD = out["sequence_output"]
  result = {"last_hidden_state": x_BLD}
  if "pooler" in params:
    result["pooler_output"] = out["pooled_output"]
  if "classifier" in params:
    source = out["pooled_output"] if "pooler" in params and task != "tag" else x_BLD
    logits = heads.affine(params["classifier"], source)
    result["logits"] = logits.reshape(lead) if task == "choose" else logits
  if "mlm" in params:
    result["prediction_logits" if "classifier" in params else "logits"] = out["mlm_logits"]
  if "sop" in params:
    result["sop_logits"] = out["sop_logits"]
  if "span" in params:
    logits = heads.affine(params["span"], x_BLD)
    result |= {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}
  if "sentence" in params:
    result["sentence_logits"] = heads.affine(params["sentence"], x_BLD)[..., 0]
  if "squad_v2" in params:
    result |= squad_heads.beam_spans(params["squad_v2"], x_BLD, inputs, Search(start_n_top=starts, end_n_top=ends))
  if pooling:
    result["sentence_embedding"] = retrieve.pooled_BD(pooling, x_BLD, inputs["attention_mask"])
  return result


def exported(cfg: AlbertConfig, params: dict, *, starts: int = 5, ends: int = 5, **build: Any) -> Any:
  """Exports `outputs` as StableHLO, with the weights inside, for any batch size and length.

  Args:
    cfg, params, starts, ends, build: as for `outputs`.

  Returns:
    jax.export.Exported, a function of int32 arrays {"input_ids", "attention_mask", "token_type_ids", …}; it runs on
    CPUs, NVIDIA GPUs and TPUs.
  """
  positions = cfg.max_position_embeddings
  # Shapes must not depend on the length, and in shorter rows the beam head has fewer candidates.
  least = max(starts, ends) if "squad_v2" in params else 2
  limits = [f"length >= {least}", f"length <= {positions}"]
  sizes = jax.export.symbolic_shape("batch, choices, length", constraints=limits)
  axes = sizes if build.get("task") == "choose" else (sizes[0], sizes[2])
  names = ("input_ids", "attention_mask", "token_type_ids", *(("allowed",) if "squad_v2" in params else ()))
  batch = {name: jax.ShapeDtypeStruct(axes, jnp.int32) for name in names}
  function = jax.jit(lambda batch: outputs(cfg, params, batch, starts=starts, ends=ends, **build))
  return jax.export.export(function, platforms=("cpu", "cuda", "tpu"))(batch)
