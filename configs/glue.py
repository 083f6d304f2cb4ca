"""GLUE. Variants are the datasets, each with a size after it: configs/glue.py:sst-2, configs/glue.py:rte-xxlarge.

  albert-jax train --config=configs/glue.py:sst-2 --config.init_from=CHECKPOINT --config.data.dataset=glue_data \\
    --workdir=RUN

data.dataset is the folder of the official TSV files, or the one that holds those of all datasets; by default it is the
TFDS dataset. The size (base, if none is given) matters only for a model from scratch, and for `albert-jax plan`: with
init_from the model is the checkpoint's.

The paper begins RTE, STS-B and MRPC with its model of MNLI: --config.init_from=MNLI_RUN, whose classifier is left out.
"""

from albert_jax.configs import classify, common
from albert_jax.data.finetuning.config import GlueData
from albert_jax.tasks.glue import TASKS

# The paper's values (arXiv 1909.11942, table 14); classifier dropout is 0.1 and the length 512 in every row. AX is for
# evaluating a model of MNLI.
PAPER = {
  # dataset: learning rate, batch, ALBERT's dropout, steps, of which warm-up
  "cola":  (1e-5, 16, 0.0, 5_336, 320),
  "sts-b": (2e-5, 16, 0.0, 3_598, 214),
  "sst-2": (1e-5, 32, 0.0, 20_935, 1_256),
  "mnli":  (3e-5, 128, 0.0, 10_000, 1_000),
  "qnli":  (1e-5, 32, 0.0, 33_112, 1_986),
  "qqp":   (5e-5, 128, 0.1, 14_000, 1_000),
  "rte":   (3e-5, 32, 0.1, 800, 200),
  "mrpc":  (2e-5, 32, 0.0, 800, 200),
  "wnli":  (2e-5, 16, 0.1, 2_000, 250),
  "ax":    (3e-5, 128, 0.0, 10_000, 1_000),
}  # fmt: skip


def get_config(variant: str = "sst-2"):
  """

  Args:
    variant: DATASET or DATASET-SIZE.
  """
  dataset = next((name for name in TASKS if variant == name or variant.startswith(f"{name}-")), "")
  if not dataset:
    common.check_variant(variant, TASKS, "sst-2-xxlarge")
  config = common.finetune(variant.removeprefix(dataset).removeprefix("-") or "base", "glue", GlueData())
  config.task.dataset = dataset
  config.task.keep_head = False  # go on with the checkpoint's classifier, which has to be of the same dataset
  classify.options(config)
  config.data.dataset = f"glue/{TASKS[dataset].tfds}"
  config.best = TASKS[dataset].metrics[0]

  rate, batch, dropout, steps, warmup = PAPER[dataset]
  config.optimizer.learning_rate = rate
  config.optimizer.warmup_steps = warmup
  config.batch_size = batch
  config.model.hidden_dropout_prob = config.model.attention_probs_dropout_prob = dropout
  config.model.classifier_dropout_prob = 0.1
  config.epochs, config.steps = 0.0, steps
  config.eval_every = config.checkpoint_every = steps // 10
  if dataset == "ax":
    config.data.validation_split = "test"
  return config
