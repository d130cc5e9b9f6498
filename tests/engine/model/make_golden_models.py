#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the tiny random checkpoints of tests/data/models and the logits that `transformers` gives for them.

    python3 -m venv v && v/bin/pip install torch transformers safetensors
    v/bin/python tests/engine/model/make_golden_models.py tests/data/models

Each family has one set of weights (weights.safetensors, float32) and variants that differ in config.json alone:
NAME.json is the configuration, NAME.logits the float32 logits (tokens, vocabulary) of TOKENS, little-endian.
"""
import json
import pathlib
import sys

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB, LENGTH = 96, 40
TOKENS = [(7 * i * i + 3 * i + 1) % VOCAB for i in range(LENGTH)]

BASE = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, rope_theta=10000.0,
            bos_token_id=1, eos_token_id=2, tie_word_embeddings=False)
SCALINGS = {
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "dynamic": {"max_position_embeddings": 16, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    "longrope": {"original_max_position_embeddings": 16,
                 "rope_scaling": {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 16}},
    "llama3": {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                "original_max_position_embeddings": 16}},
}
WINDOW = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
MHA, MQA = dict(num_key_value_heads=4), dict(num_key_value_heads=1, head_dim=12)
LLAMA = dict(BASE, model_type="llama", attention_bias=False, mlp_bias=False)
MISTRAL = dict(BASE, model_type="mistral", sliding_window=None)
QWEN2 = dict(BASE, model_type="qwen2")
QWEN3 = dict(BASE, model_type="qwen3", head_dim=16, attention_bias=False)
TIED = dict(tie_word_embeddings=True)
FAMILIES = {
    "llama": (LLAMA, {"plain": {}, **SCALINGS}),
    "llama_mha_tied": (dict(LLAMA, **MHA, **TIED), {"plain": {}}),
    "llama_mqa_bias": (dict(LLAMA, **MQA, attention_bias=True, mlp_bias=True), {"plain": {}}),
    "mistral": (MISTRAL, {"full": {}, "window": {"sliding_window": 9}, **SCALINGS}),
    "mistral_mha": (dict(MISTRAL, **MHA), {"full": {}}),
    "mistral_mqa_tied": (dict(MISTRAL, **MQA, **TIED), {"window": {"sliding_window": 9}}),
    "qwen2": (dict(QWEN2, **TIED), {"plain": {}, "window": WINDOW, **SCALINGS}),
    "qwen2_mha": (dict(QWEN2, **MHA), {"plain": {}}),
    "qwen2_mqa": (dict(QWEN2, num_key_value_heads=1), {"window": WINDOW}),
    "qwen3": (QWEN3, {"plain": {}, **SCALINGS}),
    "qwen3_mha_bias": (dict(QWEN3, **MHA, attention_bias=True), {"plain": {}}),
    "qwen3_mqa_tied": (dict(QWEN3, **MQA, **TIED), {"window": WINDOW}),
}


def settings(base, change):
    """One variant's config.json."""
    raw = {**base, **change}
    scaling = raw.get("rope_scaling", {})
    if scaling.get("rope_type") == "longrope":  # a divisor for each pair of rotated dimensions
        pairs = raw.get("head_dim", raw["hidden_size"] // raw["num_attention_heads"]) // 2
        raw["rope_scaling"] = {**scaling, "short_factor": [1.0] * pairs,
                               "long_factor": [1.0, 1.5, 2.25, 4.0, 5.0, 6.5, 8.0, 9.5][:pairs]}
    return raw


def main() -> None:
    root = pathlib.Path(sys.argv[1])
    for family, (base, variants) in FAMILIES.items():
        directory = root / family
        directory.mkdir(parents=True, exist_ok=True)
        weights = None
        for name, change in variants.items():
            raw = settings(base, change)
            (directory / f"{name}.json").write_text(json.dumps(raw, indent=1) + "\n")
            scratch = directory / "config.json"
            scratch.write_text(json.dumps(raw))
            config = AutoConfig.from_pretrained(directory)
            scratch.unlink()
            torch.manual_seed(20)
            model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
            if weights is None:
                state = model.state_dict()
                weights = {key: torch.randn_like(value) * (0.3 if value.ndim == 2 else 0.1) + (1.0 if "norm" in key else 0.0)
                           for key, value in state.items()}
                stored = {k: v.contiguous() for k, v in weights.items() if not (k == "lm_head.weight" and base["tie_word_embeddings"])}
                save_file(stored, directory / "weights.safetensors")
            tied = dict(weights)
            if base["tie_word_embeddings"]:
                tied["lm_head.weight"] = tied["model.embed_tokens.weight"]
            model.load_state_dict(tied)
            with torch.no_grad():
                logits = model(torch.tensor([TOKENS]), use_cache=False).logits[0]
            (directory / f"{name}.logits").write_bytes(logits.float().numpy().astype("<f4").tobytes())
    (root / "made-with.txt").write_text(f"transformers {transformers.__version__}, torch {torch.__version__}\n")


if __name__ == "__main__":
    main()
