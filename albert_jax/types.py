"""The two types that functions of models share."""

from collections.abc import Mapping
from typing import Any

Params = dict[str, Any]  # a nested dict of float32 arrays, as {"ffn": {"up": {"kernel": [D, F], "bias": [F]}}}
Batch = Mapping[str, Any]  # {name: array}, as {"input_ids": int32 [B, L]}
