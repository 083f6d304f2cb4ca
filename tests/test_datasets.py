"""A dataset's description names Python classes; only those of TFDS are ever imported."""

import json

import pytest

from albert_jax.data import datasets
from albert_jax.data.finetuning import tables
from albert_jax.errors import UserError

TEXT = {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}}


def features(**named):
  return {
    "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
    "featuresDict": {"features": named},
  }


def write(folder, value):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "dataset_info.json").write_text("{}")
  (folder / "features.json").write_text(value if isinstance(value, str) else json.dumps(value))


def test_the_classes_of_tfds_are_allowed_and_a_feature_may_be_called_type(tmp_path):
  write(tmp_path, features(text=TEXT, type=TEXT))
  datasets.check_features(tmp_path)


@pytest.mark.parametrize(
  "value",
  [
    features(text={**TEXT, "pythonClassName": "evil.Class"}),
    features(text={**TEXT, "python_class_name": "evil.Class"}),
    {"type": "evil.Class", "content": {}},
    features(texts={"sequence": {"feature": [{"pythonClassName": "evil.Class"}]}}),
    features(text={"pythonClassName": 7}),
    '{"pythonClassName": "tensorflow_datasets.core.features.a.B", "pythonClassName": "evil.Class"}',
    '{"pythonClassName": "\\u0065vil.Class"}',
    "[]",
  ],
)
@pytest.mark.parametrize("below", ["", "1.0.0"])
def test_another_class_is_one_line_and_is_not_imported(tmp_path, monkeypatch, value, below):
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
  write(tmp_path / "data" / below, value)
  with pytest.raises(UserError, match=r"features\.json") as error:
    tables.read(tmp_path / "data", "train", ["text"])
  assert "\n" not in str(error.value)
  write(tmp_path / "by_name" / "1.0.0", value)
  with pytest.raises(UserError, match=r"features\.json"):
    tables.read("by_name", "train", ["text"], tfds_dir=str(tmp_path))
