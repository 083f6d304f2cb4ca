"""The second step of `prepare`: drops duplicates, chooses splits, and copies records to shards of a TFDS dataset."""

import io
import pathlib
import tempfile
from collections.abc import Callable

import numpy as np

from albert_jax import files
from albert_jax.data import records

NAME = "albert_segments"  # the TFDS name; it also starts the names of the shards
_COPY_RECORDS = 1024


def load_table(path: str) -> dict[str, np.ndarray]:
  """Returns the arrays of an .npz file, as a dict."""
  with np.load(io.BytesIO(files.read(path))) as table:
    return dict(table)


def split_documents(documents: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
  """Chooses which documents are kept and which of them are held out.

  Args:
    documents: uint64 array [n], the document ids of a corpus in its order.
    fraction: the share to hold out, 0 ≤ fraction < 1.

  Returns:
    (is_kept, is_validation): bool arrays [n]. The first of several equal documents is kept. Whether a document is held
    out depends on its id alone; if a split would be empty, it gets the next document in order.
  """
  _, first = np.unique(documents, return_index=True)
  is_kept = np.zeros(len(documents), bool)
  is_kept[first] = True
  threshold = int(fraction * 2**64)
  kept = documents[is_kept]
  if fraction and len(kept) > 1:
    threshold = min(max(threshold, int(kept.min()) + 1), int(kept.max()))
  return is_kept, is_kept & (documents < np.uint64(threshold))


def copy_units(
  run: Callable[..., None], partial: str, documents: list[int], members: dict[str, np.ndarray], sizes: list[int], V: int
) -> tuple[list[dict[str, np.ndarray]], dict[str, np.ndarray], dict[str, np.ndarray]]:
  """Copies the records of all units from `partial/units` to the shards of a new folder `partial/dataset`.

  Args:
    run: a runner, see runners.py.
    documents: how many documents each unit has.
    members: {split: bool array over all documents}, none empty.
    sizes: bytes of each unit, to show progress.
    V: the size of the vocabulary.

  Returns:
    the tables of `copy_unit`; and for each split its lengths and its counts, see there.
  """
  ends = np.cumsum(documents)[:-1]
  masks_of = {split: np.split(mask, ends) for split, mask in members.items()}
  files.remove(f"{partial}/dataset")
  paths = _name_shards(f"{partial}/dataset", masks_of)
  folder, numbers = f"{partial}/units", range(len(documents))
  jobs = [(i, folder, {split: masks[i] for split, masks in masks_of.items()}, paths[i], V) for i in numbers]
  run(copy_unit, jobs, sizes, "write")
  tables = [load_table(f"{folder}/{i:06d}.copied.npz") for i in numbers]
  holders = {split: [table for table in tables if f"{split}.bytes" in table] for split in members}
  lengths = {s: np.concatenate([table[f"{s}.lengths"] for table in tables]) for s, tables in holders.items()}
  counts = {s: np.sum([table[f"{s}.counts"] for table in tables], axis=0) for s, tables in holders.items()}
  return tables, lengths, counts


def copy_unit(
  number: int, folder: str, members: dict[str, np.ndarray], shards: dict[str, str], vocab_size: int
) -> None:
  """Copies a unit's records to its shards, and writes the table `folder/NUMBER.copied.npz` of their contents.

  The table's columns, for each split: `SPLIT.bytes`, `SPLIT.counts` (how often each token occurs, [V]) and
  `SPLIT.lengths` (tokens and sentences of each record, uint16 [n, 2]).

  Args:
    number: int, the unit's place in the corpus.
    folder: where its files are.
    members: {split: bool array over the unit's documents}.
    shards: {split: path}, without the splits that get nothing.
    vocab_size: V.
  """
  path = f"{folder}/{number:06d}"
  table = load_table(f"{path}.npz")
  owner = np.repeat(np.arange(len(table["segments"])), table["segments"])
  columns = {}
  for split, shard in shards.items():
    with files.writing(shard) as local:
      written = _write_shard(path, table["sizes"], members[split][owner], local, vocab_size)
    columns |= {f"{split}.{name}": values for name, values in written.items()}
  with files.writing(f"{path}.copied.npz") as local:
    np.savez(local, **columns)


def _write_shard(path, sizes, is_own, local, vocab_size):
  """Copies the records of one split; returns the columns of copy_unit's table."""
  from array_record.python.array_record_module import ArrayRecordWriter
  from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

  size, counts, lengths = 0, np.zeros(vocab_size, np.int64), []
  # Records are read one by one in random order, so compressing groups of them gains nothing, and compressing ids gains
  # little; reading is a third faster without compression.
  writer = ArrayRecordWriter(local, "group_size:1,uncompressed")
  fs, name = files.filesystem(f"{path}.records")
  with fs.open(name, "rb") as file:
    for i in range(0, len(sizes), _COPY_RECORDS):
      window = sizes[i : i + _COPY_RECORDS]
      data = file.read(int(window.sum()))
      ends = np.cumsum(window)
      chosen = np.flatnonzero(is_own[i : i + _COPY_RECORDS]).tolist()
      packed = [data[ends[k] - window[k] : ends[k]] for k in chosen]
      for record in packed:
        feature = tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[record]))
        example = tf_example_pb2.Example(features=tf_feature_pb2.Features(feature={"record": feature}))
        serialized = example.SerializeToString()
        writer.write(serialized)
        size += len(serialized)
      if packed:
        many = records.unpack(packed)
        counts += np.bincount(many.ids[records.ragged(many.id_base, many.tokens)], minlength=vocab_size)
        lengths.append(np.stack([many.tokens, many.sentences], axis=1).astype("<u2"))
  writer.close()
  return {"bytes": size, "counts": counts, "lengths": np.concatenate(lengths)}


def _name_shards(dataset, members):
  """Returns the paths of the shards, by TFDS' rules.

  Args:
    dataset: str, the folder they go to.
    members: {split: list of bool arrays}, for each unit which of its documents are in the split.

  Returns:
    For each unit {split: path} of the splits that it has records for.
  """
  shards = [{} for _ in next(iter(members.values()))]
  for split, masks in members.items():
    owners = [unit for unit, mask in enumerate(masks) if mask.any()]
    for shard, unit in enumerate(owners):
      # TFDS supports fewer stores than fsspec, so only the name comes from TFDS.
      name = _template("", split).sharded_filepath(shard_index=shard, num_shards=len(owners)).name
      shards[unit][split] = f"{dataset}/{name}"
  return shards


def _template(dataset, split):
  import tensorflow_datasets as tfds

  return tfds.core.ShardedFileTemplate(
    dataset_name=NAME, split=split, filetype_suffix="array_record", data_dir=str(dataset)
  )


def metadata(parts: list[dict[str, np.ndarray]], splits: list[str]) -> dict[str, bytes]:
  """Returns the metadata files of a TFDS dataset.

  Args:
    parts: list of copy_unit's tables.
    splits: list of str.

  Returns:
    {file name: bytes}.
  """
  import tensorflow_datasets as tfds

  features = tfds.features.FeaturesDict({"record": tfds.features.Tensor(shape=(), dtype=np.object_)})
  with tempfile.TemporaryDirectory() as folder:
    infos = []
    for split in splits:
      holders = [part for part in parts if f"{split}.bytes" in part]
      template = _template(folder, split)
      infos.append(
        tfds.core.SplitInfo(
          name=split,
          shard_lengths=[len(part[f"{split}.lengths"]) for part in holders],
          num_bytes=sum(int(part[f"{split}.bytes"]) for part in holders),
          filename_template=template,
        )
      )
      # TFDS reads the names of the dataset and its splits from file names, so there must be a file.
      pathlib.Path(template.sharded_filepath(shard_index=0, num_shards=1)).touch()
    tfds.folder_dataset.write_metadata(data_dir=folder, features=features, split_infos=infos, check_data=False)
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).glob("*.json")}


def baselines(train: np.ndarray, validation: np.ndarray, special_ids: list[int]) -> dict[str, float]:
  """Returns the validation loss and accuracy of a model that predicts from token frequencies alone.

  Args:
    train, validation: int64 arrays [V], how often each token occurs.
    special_ids: ids that are never predicted.

  Returns:
    dict: `unigram_loss` in nats a token (add-one smoothing) and `top_token_accuracy`.
  """
  ordinary = np.ones(len(train), bool)
  ordinary[special_ids] = False
  train, validation = train[ordinary], validation[ordinary]
  log_p = np.log(train + 1) - np.log(np.sum(train + 1))
  total = max(1, validation.sum())
  return {
    "unigram_loss": float(-(validation * log_p).sum() / total),
    "top_token_accuracy": float(validation[train.argmax()] / total),
  }
