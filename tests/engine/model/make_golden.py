#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/data/rope/golden.json: for each rope scaling a config.json, a context length, and
the frequencies and attention factor that transformers computes for it.

    python3 make_golden.py        needs torch and transformers (written with 5.23)
"""
import copy
import json
import pathlib

import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

BASE = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 2048,
}
SHORT = [1.0 + 0.05 * i for i in range(16)]
LONG = [1.0 + 0.7 * i for i in range(16)]
CASES = [
    ("default", {"rope_theta": 10000.0}, 0),
    ("default, no field at all", {}, 0),
    ("linear, type", {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 2.5}}, 0),
    ("linear, rope_parameters",
     {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500000.0}}, 0),
    ("dynamic within the trained length",
     {"rope_theta": 10000.0, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, 2048),
    ("dynamic beyond it",
     {"rope_theta": 10000.0, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, 6000),
    ("yarn",
     {"rope_theta": 10000.0,
      "rope_scaling": {"rope_type": "yarn", "factor": 4.0,
                       "original_max_position_embeddings": 512}}, 0),
    ("yarn, every field",
     {"rope_parameters": {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0,
                          "original_max_position_embeddings": 256, "beta_fast": 16.0,
                          "beta_slow": 2.0, "truncate": False, "mscale": 0.707,
                          "mscale_all_dim": 1.0}}, 0),
    ("yarn, attention factor",
     {"rope_theta": 10000.0,
      "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.25,
                       "original_max_position_embeddings": 1024}}, 0),
    ("longrope, short",
     {"rope_theta": 10000.0,
      "rope_scaling": {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG,
                       "factor": 4.0, "original_max_position_embeddings": 512}}, 512),
    ("longrope, long",
     {"rope_theta": 10000.0,
      "rope_scaling": {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG,
                       "factor": 4.0, "original_max_position_embeddings": 512}}, 513),
    ("longrope, factor from the lengths",
     {"rope_theta": 10000.0, "original_max_position_embeddings": 1024,
      "rope_scaling": {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG}}, 2048),
    ("llama3",
     {"rope_theta": 500000.0,
      "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                       "high_freq_factor": 4.0, "original_max_position_embeddings": 1024}}, 0),
    ("llama3, 32 times",
     {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0,
                          "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                          "original_max_position_embeddings": 256}}, 0),
    ("a quarter of the dimensions", {"rope_theta": 10000.0, "partial_rotary_factor": 0.25}, 0),
]


def default_frequencies(config):
    parameters = config.rope_parameters
    dim = int(config.head_dim * parameters.get("partial_rotary_factor", 1.0))
    exponent = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    return 1.0 / parameters["rope_theta"] ** exponent, 1.0


def main():
    cases = []
    for name, fields, context in CASES:
        document = {**BASE, **copy.deepcopy(fields)}
        config = LlamaConfig(**copy.deepcopy(document))
        kind = config.rope_parameters["rope_type"]
        if kind == "default":
            frequencies, factor = default_frequencies(config)
        else:
            frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=context or None)
        cases.append({"name": name, "config": document, "context": context,
                      "frequencies": [float(f) for f in frequencies],
                      "attention_factor": float(factor)})
    path = pathlib.Path(__file__).parents[2] / "data" / "rope" / "golden.json"
    path.write_text(json.dumps(cases, indent=1) + "\n")


main()
