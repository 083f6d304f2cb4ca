"""TensorFlow checkpoints without TensorFlow: bit for bit in both directions, and no damage goes unnoticed."""

import pathlib
import shutil

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from albert_jax.convert import tf_checkpoint
from albert_jax.convert.protobuf import field, parse
from albert_jax.errors import UserError

ARRAYS = {
  "global_step": np.array(125000, np.int64),
  "bert/embeddings/word_embeddings": np.arange(60, dtype=np.float32).reshape(20, 3),
  "bert/embeddings/word_embeddings/adam_m": np.ones((20, 3), np.float32),
  "empty": np.zeros((0, 4), np.float32),
  "half": np.array([1.5, -2], np.float16),
  "brain": np.array([1.5, -2], ml_dtypes.bfloat16),
  "flags": np.array([True, False]),
}
DTYPES = [np.float32, np.float64, np.float16, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.bool_]


def assert_same(a, b):
  assert a.keys() == b.keys()
  for name in a:
    assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
    assert a[name].tobytes() == b[name].tobytes(), name


def test_checksums_are_those_of_rfc_3720():
  # Appendix B.4: CRC-32C of 32 bytes of ones is 0x62A8AB43; TensorFlow stores it rotated by 15 bits, plus a constant.
  rotated = 0x62A8AB43 >> 15 | 0x62A8AB43 << 17
  assert tf_checkpoint._masked_crc(b"\xff" * 32) == (rotated + 0xA282EAD8) & 0xFFFFFFFF


class TestRoundTrip:
  @pytest.mark.parametrize("shards", [1, 2, 5, 12])
  def test_arrays(self, tmp_path, shards):
    tf_checkpoint.write(tmp_path / "model.ckpt-7", ARRAYS, shards=shards)
    assert len(list(tmp_path.glob("*.data-*"))) == shards
    assert_same(tf_checkpoint.read(tmp_path), ARRAYS)
    assert (tmp_path / "checkpoint").read_text().startswith('model_checkpoint_path: "model.ckpt-7"\n')

  @settings(max_examples=30, deadline=None)
  @given(
    st.dictionaries(
      st.text(st.characters(min_codepoint=33, exclude_categories=["Cs"]), min_size=1, max_size=30),
      st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_side=4))),
      max_size=40,
    ),
    st.integers(1, 3),
  )
  def test_any_arrays(self, tmp_path_factory, arrays, shards):
    folder = tmp_path_factory.mktemp("checkpoint")
    tf_checkpoint.write(folder / "x", arrays, shards=shards)
    assert_same(tf_checkpoint.read(folder), arrays)

  def test_a_table_of_many_blocks(self, tmp_path):
    arrays = {f"{'long/' * 30}{i:05d}": np.array(i) for i in range(6000)}
    tf_checkpoint.write(tmp_path / "x", arrays)
    assert (tmp_path / "x.index").stat().st_size > 2 * tf_checkpoint._BLOCK / 4
    assert_same(tf_checkpoint.read(tmp_path), arrays)

  def test_one_tensor_at_a_time(self, tmp_path):
    tf_checkpoint.write(tmp_path / "x", ARRAYS)
    checkpoint = tf_checkpoint.Checkpoint(tmp_path / "x")
    assert checkpoint.variables["half"] == (np.float16, (2,))
    assert list(checkpoint.variables) == sorted(ARRAYS)
    assert checkpoint.read("global_step") == 125000
    assert_same(tf_checkpoint.read(tmp_path, names=["half"]), {"half": ARRAYS["half"]})
    with pytest.raises(UserError, match=r"no tensor 'other'.*global_step"):
      checkpoint.read("other")

  def test_any_of_its_files_names_it(self, tmp_path):
    tf_checkpoint.write(tmp_path / "x", ARRAYS)
    for name in ("", "x", "x.index", "x.data-00000-of-00001", "x.meta"):
      assert tf_checkpoint.find(tmp_path / name) == str(tmp_path / "x")

  @pytest.mark.realdata
  @pytest.mark.parametrize("folder", ["google_tf1", "google_tf1_squad_v2"])
  def test_files_of_tensorflow(self, tmp_path, real_data, folder):
    """What TensorFlow 1.15 wrote is read, and written again becomes the same bytes."""
    theirs = tf_checkpoint.Checkpoint(real_data / folder)
    arrays = tf_checkpoint.read(real_data / folder)
    if folder == "google_tf1":
      with np.load(real_data / folder / "variables.npz") as variables:
        assert_same(arrays, dict(variables))
    tf_checkpoint.write(tmp_path / "x", arrays)
    for end in (".index", ".data-00000-of-00001"):
      assert pathlib.Path(f"{tmp_path}/x{end}").read_bytes() == pathlib.Path(f"{theirs.prefix}{end}").read_bytes()

  @pytest.mark.parametrize("shards", [1, 3])
  def test_tensorflow_opens_what_we_write(self, tmp_path, shards):
    tf = pytest.importorskip("tensorflow", reason="compares with TensorFlow, which is not a dependency")
    arrays = ARRAYS | {f"{'many/' * 30}{i:05d}": np.array(i) for i in range(3000)}
    tf_checkpoint.write(tmp_path / "x", arrays, shards=shards)
    reader = tf.train.load_checkpoint(str(tmp_path))
    assert_same({name: np.asarray(reader.get_tensor(name)) for name in reader.get_variable_to_shape_map()}, arrays)

  def test_we_open_what_tensorflow_writes(self, tmp_path):
    tf = pytest.importorskip("tensorflow", reason="compares with TensorFlow, which is not a dependency")
    model = tf.train.Checkpoint(x=tf.Variable([1.0, 2.0]), y=tf.Variable(tf.ones([3, 2], tf.bfloat16)))
    prefix = model.write(str(tmp_path / "x"))
    checkpoint = tf_checkpoint.Checkpoint(prefix)
    np.testing.assert_array_equal(checkpoint.read("x/.ATTRIBUTES/VARIABLE_VALUE"), [1, 2])
    assert checkpoint.read("y/.ATTRIBUTES/VARIABLE_VALUE").dtype == ml_dtypes.bfloat16
    with pytest.raises(UserError, match="_CHECKPOINTABLE_OBJECT_GRAPH: its type"):
      checkpoint.read("_CHECKPOINTABLE_OBJECT_GRAPH")


class TestDamage:
  @pytest.fixture
  def prefix(self, tmp_path):
    tf_checkpoint.write(tmp_path / "x", ARRAYS, shards=2)
    return tmp_path / "x"

  def test_which_checkpoint(self, tmp_path, prefix):
    with pytest.raises(UserError, match=r"no TensorFlow checkpoint at .*nowhere"):
      tf_checkpoint.find(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no TensorFlow checkpoint"):
      tf_checkpoint.find(tmp_path / "empty")
    shutil.copy(f"{prefix}.index", tmp_path / "y.index")
    with pytest.raises(UserError, match=r"holds 2 checkpoints; name one of them:\n.*/x\n.*/y"):
      tf_checkpoint.find(tmp_path)

  def test_truncated_data(self, prefix):
    file = pathlib.Path(f"{prefix}.data-00001-of-00002")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"data-00001-of-00002 is cut off.*half ends at byte"):
      tf_checkpoint.read(prefix, names=["half"])

  def test_missing_data(self, prefix):
    pathlib.Path(f"{prefix}.data-00001-of-00002").unlink()
    with pytest.raises(UserError, match=r"no .*data-00001-of-00002, which holds"):
      tf_checkpoint.read(prefix)

  def test_flipped_byte_of_data(self, prefix):
    file = pathlib.Path(f"{prefix}.data-00000-of-00002")
    data = bytearray(file.read_bytes())
    data[5] ^= 4
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"data-00000-of-00002 is damaged: the checksum of bert/embeddings/word_emb"):
      tf_checkpoint.read(prefix)

  def test_every_flipped_byte_of_the_index(self, prefix):
    """Either it is noticed or it changes nothing (the footer's padding)."""
    file = pathlib.Path(f"{prefix}.index")
    good = file.read_bytes()
    for i in range(len(good)):
      for mask in (0x01, 0x80):
        file.write_bytes(good[:i] + bytes([good[i] ^ mask]) + good[i + 1 :])
        try:
          assert_same(tf_checkpoint.read(prefix), ARRAYS)
        except UserError as error:
          assert str(prefix) in str(error)
        else:
          assert i >= len(good) - tf_checkpoint._FOOTER

  def test_every_truncation_of_the_index(self, prefix):
    file = pathlib.Path(f"{prefix}.index")
    good = file.read_bytes()
    for size in range(len(good)):
      file.write_bytes(good[:size])
      with pytest.raises(UserError):
        tf_checkpoint.Checkpoint(prefix)

  @settings(max_examples=200, deadline=None)
  @given(st.binary(max_size=200))
  def test_garbage(self, tmp_path_factory, garbage):
    folder = tmp_path_factory.mktemp("garbage")
    (folder / "x.index").write_bytes(garbage + tf_checkpoint._MAGIC)
    with pytest.raises(UserError, match=r"x\.index"):
      tf_checkpoint.Checkpoint(folder)
    for read in (lambda: parse(garbage), lambda: tf_checkpoint._entry(b"x", garbage, 1)):
      try:
        with tf_checkpoint._damage("file"):
          read()
      except UserError as error:
        assert str(error).startswith("file ")

  def entry(self, tmp_path, *fields):
    """Returns a checkpoint whose index claims what it is told to."""
    entries = [(b"", field(1, 1)), (b"weight", b"".join(fields))]
    (tmp_path / "y.index").write_bytes(tf_checkpoint._index(entries))
    (tmp_path / "y.data-00000-of-00001").write_bytes(bytes(8))
    return tf_checkpoint.Checkpoint(tmp_path / "y")

  def test_an_index_that_lies(self, tmp_path):
    shape = field(2, field(2, field(1, 2)))
    with pytest.raises(UserError, match="weight ends at byte 1008, the file has 8"):
      self.entry(tmp_path, field(1, 1), shape, field(4, 1000), field(5, 8)).read("weight")
    with pytest.raises(UserError, match=r"weight float32 \[2\] takes 8 bytes, not 9"):
      self.entry(tmp_path, field(1, 1), shape, field(5, 9)).read("weight")
    huge = field(2, field(2, field(1, 1 << 40)) + field(2, field(1, 1 << 40)))
    with pytest.raises(UserError, match="takes"):
      self.entry(tmp_path, field(1, 1), huge, field(5, 8)).read("weight")
    with pytest.raises(UserError, match="shard 3 of 1"):
      self.entry(tmp_path, field(1, 1), shape, field(3, 3))

  def test_what_is_not_supported(self, tmp_path):
    strings = self.entry(tmp_path, field(1, 7), field(2, b""), field(5, 8))
    assert isinstance(strings.variables["weight"][0], str)
    with pytest.raises(UserError, match="cannot read weight: its type"):
      strings.read("weight")
    with pytest.raises(UserError, match="weight: it was saved in slices"):
      self.entry(tmp_path, field(1, 1), field(2, b""), field(7, b"")).read("weight")
    with pytest.raises(UserError, match="no place in a TensorFlow checkpoint"):
      tf_checkpoint.write(tmp_path / "z", {"x": np.array(["text"])})
    assert not list(tmp_path.glob("z*")) and not list(tmp_path.glob(".z*"))

  def test_compressed(self, prefix):
    file = pathlib.Path(f"{prefix}.index")
    data = bytearray(file.read_bytes())
    (start, size), _ = tf_checkpoint._handle(data[-48:], tf_checkpoint._handle(data[-48:], 0)[1])
    data[start + size] = 1
    data[start + size + 1 : start + size + 5] = tf_checkpoint._masked_crc(data[start : start + size + 1]).to_bytes(
      4, "little"
    )
    file.write_bytes(data)
    with pytest.raises(UserError, match="compressed"):
      tf_checkpoint.Checkpoint(prefix)

  def test_nothing_is_overwritten(self, prefix):
    with pytest.raises(UserError, match="exists already"):
      tf_checkpoint.write(prefix, {})
    assert_same(tf_checkpoint.read(prefix), ARRAYS)
