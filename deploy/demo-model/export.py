# SPDX-License-Identifier: Apache-2.0
"""Writes a checkpoint of train.py as a Hugging Face directory with bf16 weights.

    export.py --checkpoint DIR/checkpoint.pt --out model
"""

import argparse
import json
import pathlib

import torch
from safetensors.torch import save_file

from train import BOS, CONFIG, EOS


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()
    saved = torch.load(options.checkpoint)
    options.out.mkdir(parents=True, exist_ok=True)
    # The head is the embedding; it is stored once.
    tensors = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in saved["model"].items() if name != "lm_head.weight"}
    metadata = {"format": "pt", "tokens": str(saved["state"]["tokens"])}
    save_file(tensors, str(options.out / "model.safetensors"), metadata=metadata)
    (options.out / "model.safetensors").chmod(0o644)
    config = dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu",
                  attention_bias=False, mlp_bias=False, rope_scaling=None, torch_dtype="bfloat16",
                  initializer_range=0.02, use_cache=True, **CONFIG)
    (options.out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    generation = dict(bos_token_id=BOS, eos_token_id=EOS, do_sample=True, temperature=0.8, top_p=0.95)
    (options.out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    parameters = sum(tensor.numel() for tensor in tensors.values())
    print(f"{parameters} parameters, {saved['state']['tokens']} tokens trained")


if __name__ == "__main__":
    main()
