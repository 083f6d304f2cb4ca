"""What messages and run cards show, and what they do not."""

import errno
import time

import pytest

from albert_jax import errors


@pytest.mark.parametrize(
  ("text", "shown"),
  [
    ("http://user:S3CR3T@host:9/data is not there", "http://***@host:9/data is not there"),
    ("gs://bucket/a@b and s3://bucket/c", "gs://bucket/a@b and s3://bucket/c"),
    ("https://S3CR3TTOKEN@github.com/x", "https://***@github.com/x"),
    ("https://host/x?X-Goog-Signature=S3CR3T&size=2", "https://host/x?X-Goog-Signature=***&size=2"),
    ("--config.init_missing=token=S3CR3T", "--config.init_missing=token=***"),
    ("WANDB_API_KEY='S3CR3T' is wrong", "WANDB_API_KEY='***' is wrong"),
    ("password = S3CR3T", "password = ***"),
    ("hf_S3CR3TS3CR3TS3CR3T is refused", "*** is refused"),
    ("Authorization: Bearer S3CR3TS3CR3T", "Authorization: Bearer ***"),
    ('{"accessToken": "S3CR3T", "size": 2}', '{"accessToken": "***", "size": 2}'),
    ("{'password': 'S3CR3T, and more'}", "{'password': '***'}"),
    ("x-api-key: S3CR3T and X-Auth-Token: S3CR3T77", "x-api-key: *** and X-Auth-Token: ***"),
    ("https://host/x?key=S3CR3T&size=2", "https://host/x?key=***&size=2"),
    ("--password S3CR3T --token S3CR3T", "--password *** --token ***"),
    ("eyJhbGciOiJI.eyJzdWIiOiIx.S3CR3T", "***"),
    (
      "-----BEGIN PRIVATE KEY-----\nS3CR3T\n-----END PRIVATE KEY-----",
      "-----BEGIN PRIVATE KEY----- *** -----END PRIVATE KEY-----",
    ),
    (
      "the token: expected a text; key=value token 'abc' is missing",
      "the token: expected a text; key=value token 'abc' is missing",
    ),
    ("mask_token=[MASK] tokens=100 monkey=3 keep_every=2", "mask_token=[MASK] tokens=100 monkey=3 keep_every=2"),
  ],
)
def test_secrets_in_texts_are_masked(text, shown):
  assert errors.masked(text) == shown
  assert errors.masked(shown) == shown


def test_secrets_in_configs_are_masked():
  config = {
    "api_key": "S3CR3T", "hub": {"HF_TOKEN": "S3CR3T", "password": ""}, "urls": ["ftp://a:S3CR3T@b"], "steps": 3,
    "pad_token": "<pad>", "tokens": "5", "author": "me", "clientSecret": "S3CR3T", "Authorization": ["S3CR3T"],
    "credentials": {"user": "S3CR3T"}, "max_tokens": 3, "padToken": "<pad>",
  }  # fmt: skip
  shown = errors.masked(config)
  assert "S3CR3T" not in str(shown)
  assert (
    shown["pad_token"] == shown["padToken"] == "<pad>"
    and shown["max_tokens"] == 3
    and shown["author"] == "me"
    and shown["hub"]["password"] == ""
  )


@pytest.mark.parametrize("text", ["a-", "pad_token", "--a-", "token ", "password='", "://a", "aToken", "eyJ"])
def test_masking_takes_time_in_proportion_to_the_text(text):
  start = time.process_time()
  errors.masked(text * 20_000)
  assert time.process_time() - start < 5  # A quadratic pattern takes minutes.


def test_any_error_is_one_line():
  assert errors.one_line(KeyError("a\nb")) == r"KeyError: 'a\nb'"
  assert errors.one_line(RuntimeError("first\nsecond")) == "RuntimeError: first second"
  assert errors.one_line(RuntimeError()) == "RuntimeError"
  assert errors.one_line(OSError(errno.ENOSPC, "No space left on device", "f")) == "f: No space left on device"
  assert errors.one_line(FloatingPointError("the loss is NaN")) == "the loss is NaN"
