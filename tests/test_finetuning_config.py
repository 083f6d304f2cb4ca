"""`config.data` of fine-tuning checks itself: a wrong value is one line before any file is opened."""

import dataclasses

import pytest

from albert_jax.data.finetuning import config
from albert_jax.errors import UserError

KINDS = [kind for kind in vars(config).values() if isinstance(kind, type) and issubclass(kind, config.FinetuningData)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_defaults_are_valid_and_survive_a_config(kind):
  data = kind()
  assert kind.from_config(dataclasses.asdict(data)) == data


@pytest.mark.parametrize(
  ("kind", "fields", "message"),
  [
    (config.FinetuningData, {"seq_length": 4}, "data.seq_length=4: expected 8 to 65535; set it with --config.data.seq"),
    (config.FinetuningData, {"seq_length": "64"}, "expected a value such as 512"),
    (config.FinetuningData, {"split": " "}, "the name of a split"),
    (config.ClassifyData, {"text_fields": "a,b,c"}, "one column, or two"),
    (config.ClassifyData, {"text_fields": ","}, "one column, or two"),
    (config.ClassifyData, {"text_fields": "a,a"}, "different columns, and not that of the label, 'label'"),
    (config.ClassifyData, {"text_fields": "text,label"}, "different columns, and not that of the label"),
    (config.RetrieveData, {"answer_field": "query"}, "another column than data.query_field"),
    (config.ClassifyData, {"label_field": ""}, "the name of a column"),
    (config.ClassifyData, {"label_separator": ""}, "a character"),
    (config.ClassifyData, {"validation_fraction": 1}, "a share below 1"),
    (config.ClassifyData, {"validation_fraction": float("nan")}, "a share below 1"),
    (config.RetrieveData, {"quotes": "maybe"}, "one of auto, csv, none"),
    (config.TaggingData, {"tag_column": 0}, "another column than data.token_column"),
    (config.ChoiceData, {"qa_length": 510}, "1 to data.seq_length - 3 = 509"),
    (config.ChoiceData, {"levels": "low"}, "some of middle, high"),
    (config.SummarizeData, {"labels_field": ""}, "the name of a column"),
  ],
)
def test_a_wrong_value_is_one_line(kind, fields, message):
  with pytest.raises(UserError, match=message) as error:
    kind(**fields)
  assert "\n" not in str(error.value)


def test_fields_that_are_unknown_or_missing():
  fields = dataclasses.asdict(config.GlueData())
  with pytest.raises(UserError, match=r"data\.colour is unknown; expected dataset, split"):
    config.GlueData.from_config(fields | {"colour": 1})
  fields.pop("spm")
  with pytest.raises(UserError, match=r"data\.spm is missing"):
    config.GlueData.from_config(fields)
