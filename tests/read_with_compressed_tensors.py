#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Reads an artifact with the compressed-tensors package and compares every weight with independent_eval's own decoding.

    python3 -m venv v && v/bin/pip install torch transformers safetensors numpy compressed-tensors
    v/bin/python tests/read_with_compressed_tensors.py ARTIFACT

Exits 1 if the package refuses the configuration, leaves a module without a scheme or decodes a weight to other bits.
"""
import json
import pathlib
import re
import sys

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig

import independent_eval


def scheme_of(config, module):
    kind = "Embedding" if module.endswith("embed_tokens") else "Linear"
    found = [scheme for scheme in config.config_groups.values()
             if any(t in (module, kind) or (t.startswith("re:") and re.match(t[3:], module)) for t in scheme.targets)]
    return found[0] if len(found) == 1 else sys.exit(f"{module} has {len(found)} schemes")


def main():
    artifact = pathlib.Path(sys.argv[1])
    document = json.loads((artifact / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(document)
    tensors = independent_eval.read_tensors(artifact)
    modules = sorted(name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale"))
    different = 0
    for module in modules:
        scheme = scheme_of(config, module)
        state = {name[len(module) + 1:]: tensor for name, tensor in tensors.items() if name.startswith(module + ".weight")}
        state["weight_scale"] = state["weight_scale"].float()  # the product in f32, as nibble's exact mode has it
        compressor = BaseCompressor.get_value_from_registry(scheme.format or config.format)
        theirs = compressor.decompress(state, scheme)["weight"].float()
        ours = independent_eval.dequantize(tensors, module, scheme.weights.model_dump())
        different += not torch.equal(theirs, torch.from_numpy(ours))
    print(f"{len(modules)} modules read, {different} differ")
    return 1 if different or not modules else 0


if __name__ == "__main__":
    sys.exit(main())
