#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/data/compressed_tensors: a "model" whose modules the compressed-tensors package
quantized, compressed and described, one for each scheme that it knows, and the weights that it
decompresses.

    python3 make_golden.py        needs torch, safetensors, compressed-tensors (written with 0.20.0)
"""
import json
import pathlib

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import (
    QuantizationArgs, QuantizationConfig, QuantizationScheme, QuantizationStatus)
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file

ROWS, COLS = 11, 256  # eleven rows: packed zero points end inside a word, those of 3 bits straddle two


def args(bits, group, symmetric=True):
    return QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric,
                            strategy="group" if group else "channel", group_size=group)


def per_token(kind):
    return QuantizationArgs(num_bits=8, type=kind, strategy="token", dynamic=True)


PACKED, BYTES, FLOAT, NAIVE = "pack-quantized", "int-quantized", "float-quantized", "naive-quantized"
FP8 = QuantizationArgs(num_bits=8, type="float", strategy="channel")
SCHEMES = {"int8": (PACKED, args(8, None), None)}
for size in (128, 64, 32):
    SCHEMES[f"int8-g{size}"] = (PACKED, args(8, size), None)
    SCHEMES[f"int4-g{size}"] = (PACKED, args(4, size), None)
    SCHEMES[f"int4-g{size}-asym"] = (PACKED, args(4, size, symmetric=False), None)
SCHEMES["w8a8"] = (BYTES, args(8, None), per_token("int"))
for bits, size in ((3, 128), (3, 64), (2, 64), (2, 32)):
    SCHEMES[f"int{bits}-g{size}"] = (PACKED, args(bits, size), None)
    SCHEMES[f"int{bits}-g{size}-asym"] = (PACKED, args(bits, size, symmetric=False), None)
SCHEMES["fp8"] = (FLOAT, FP8, per_token("float"))
SCHEMES["fp8-w8a16"] = (NAIVE, FP8, None)


def main():
    torch.manual_seed(5)
    out = pathlib.Path(__file__).parents[2] / "data" / "compressed_tensors"
    out.mkdir(parents=True, exist_ok=True)
    tensors, expected, groups = {}, {}, {}
    for index, (name, (form, weights, inputs)) in enumerate(SCHEMES.items()):
        module = f"model.layers.0.{name}"
        scheme = QuantizationScheme(targets=[module], weights=weights, input_activations=inputs,
                                    format=form)
        groups[f"group_{index}"] = scheme
        weight = torch.randn(ROWS, COLS) * 0.05 + 0.01
        grouped = weight.reshape(ROWS, -1, weights.group_size or COLS)
        scale, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), weights)
        scale = scale.to(torch.bfloat16)
        state = {"weight": weight, "weight_scale": scale.float(), "weight_zero_point": zero}
        compressor = BaseCompressor.get_value_from_registry(form)
        compressed = compressor.compress(state, scheme)
        expected[module] = compressor.decompress(compressed, scheme)["weight"].float().contiguous()
        compressed["weight_scale"] = scale
        for key, value in compressed.items():
            tensors[f"{module}.{key}"] = value.contiguous()
    config = QuantizationConfig(config_groups=groups, format="mixed-precision", ignore=["lm_head"],
                                quantization_status=QuantizationStatus.COMPRESSED)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    save_file(expected, out / "expected.safetensors")
    document = {"model_type": "llama", "quantization_config": json.loads(config.model_dump_json())}
    (out / "config.json").write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


main()
