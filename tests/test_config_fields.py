"""The table of config fields is complete, and the page is the one that the code makes."""

import pathlib

from albert_jax.commands import common, config_fields

PAGE = pathlib.Path(__file__).parents[1] / "docs/config_fields.md"


def test_every_field_has_a_meaning():
  for name in common.DOCUMENTED:
    lacking = [field.name for field in config_fields.fields_of(common.load_config(name)) if not field.meaning]
    assert not lacking, f"{name}: comment these fields where they are defined, or in config_fields._MEANINGS"


def test_the_page_is_current():
  text = config_fields.markdown({name: common.load_config(name) for name in common.DOCUMENTED})
  assert PAGE.read_text() == text, "run: python -m albert_jax.commands.config_fields docs/config_fields.md"


def test_comments_of_a_user_s_own_file_count():
  source = 'config.steps = 3  # short\nconfig.task.update({\n  "mine": 1,  # of my own\n})\n'
  comments = config_fields.meanings(source)
  assert comments["steps"] == "short" and comments["task.mine"] == "of my own"
  assert comments["optimizer.learning_rate"] == "the peak"
