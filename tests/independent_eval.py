#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Evaluates an artifact without any of nibble's code: safetensors and numpy unpack it, transformers runs it.

    python3 -m venv v && v/bin/pip install torch transformers safetensors numpy
    v/bin/python tests/independent_eval.py ARTIFACT --text FILE [--max-tokens N] [--against MODEL]

Prints one JSON object with nll, perplexity and predictions, and with --against also kl and same_top: the figures of
`nibble eval --exact --model ARTIFACT --text FILE [--max-tokens N] [--against MODEL] --json`, from the container's
description in docs/artifact.md alone. Every document (an element of a .json array, a line of .jsonl, a whole text file)
begins with its own BOS, is cut to --max-tokens tokens, and is scored in windows of the model's context.
"""
import argparse
import json
import math
import pathlib
import re

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def read_tensors(directory):
    tensors = {}
    for file in sorted(pathlib.Path(directory).glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():
                tensors[name] = opened.get_tensor(name)
    return tensors


NF4 = np.float32([
    -1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1])


def unpack(words, bits, count, axis):
    """Unsigned codes from an LSB-first bit stream of int32 words along `axis`."""
    words = np.moveaxis(words.numpy().astype(np.int64) & 0xFFFFFFFF, axis, -1)
    stream = ((words[..., None] >> np.arange(32)) & 1).reshape(*words.shape[:-1], -1)[..., : count * bits]
    codes = (stream.reshape(*stream.shape[:-1], count, bits) << np.arange(bits)).sum(-1)
    return np.moveaxis(codes, -1, axis)


def nested_scales(codes, nested):
    """The scales of double quantization: the dynamic 8-bit map of bitsandbytes, in blocks of 256 about an offset."""
    values = [0.0, 1.0]
    for i in range(7):
        bounds = np.linspace(0.1, 1, 2**i + 1)
        values += [sign * 10.0 ** (i - 6) * mean for mean in (bounds[:-1] + bounds[1:]) / 2 for sign in (1, -1)]
    block = np.arange(codes.size).reshape(codes.shape) // 256
    return (np.sort(values)[codes] * nested[1 + block] + nested[0]).astype(np.float32)


def dequantize(tensors, module, arguments):
    bits, zero = arguments["num_bits"], 0
    if module + ".weight_packed" in tensors:
        rows, cols = tensors[module + ".weight_shape"].tolist()
        codes = unpack(tensors[module + ".weight_packed"], bits, cols, 1)
        values = NF4[codes] if arguments["type"] == "nf4" else codes - (1 << (bits - 1))
    else:
        values = tensors[module + ".weight"].float().numpy()  # int8 or e4m3
        rows, cols = values.shape
    scale = tensors[module + ".weight_scale"]
    if module + ".weight_scale_nested" in tensors:
        scale = nested_scales(scale.numpy(), tensors[module + ".weight_scale_nested"].double().numpy())
    else:
        scale = scale.float().numpy()
    if module + ".weight_zero_point" in tensors:
        zero = unpack(tensors[module + ".weight_zero_point"], bits, rows, 0) - (1 << (bits - 1))
    group = arguments.get("group_size") or cols
    group = cols if group < 0 else group
    columns = np.arange(cols) // group
    values = values if isinstance(zero, int) else values - zero[:, columns]
    weight = (values.astype(np.float32) * scale[:, columns]).astype(np.float32)
    if module + ".outlier_features" in tensors:
        weight[:, tensors[module + ".outlier_features"].numpy()] = tensors[module + ".weight_outliers"].float().numpy()
    return weight


def quantize_tokens(x, kind, outliers):
    """One scale per token, as W8A8 asks of its inputs: symmetric int8, or e4m3; outliers stay as they are."""
    largest = 127.0 if kind == "int" else 448.0
    whole, x = x, x.clone()
    x[..., outliers] = 0
    absmax = x.abs().amax(dim=-1, keepdim=True)
    inverse = torch.where(absmax > 0, largest / absmax, torch.zeros_like(absmax))
    codes = torch.clamp(x * inverse, -largest, largest)
    codes = torch.round(codes) if kind == "int" else codes.to(torch.float8_e4m3fn).float()
    rounded = codes * (absmax / largest)
    rounded[..., outliers] = whole[..., outliers]
    return rounded


def load(directory):
    config = AutoConfig.from_pretrained(directory)
    raw = json.loads((pathlib.Path(directory) / "config.json").read_text())
    quantization = raw.get("quantization_config")
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.torch_dtype = torch.float32
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    tensors = read_tensors(directory)
    state, activations = {}, {}
    for name, tensor in tensors.items():
        if name.endswith(".weight") and name[:-7] + ".weight_scale" not in tensors or name.endswith(".bias"):
            state[name] = tensor.float()
    for group in (quantization or {}).get("config_groups", {}).values():
        for name in [t[: -len(".weight_scale")] for t in tensors if t.endswith(".weight_scale")]:
            kind = "Embedding" if name.endswith("embed_tokens") else "Linear"
            if any(t == name or t == kind or (t.startswith("re:") and re.match(t[3:], name)) for t in group["targets"]):
                state[name + ".weight"] = torch.from_numpy(dequantize(tensors, name, group["weights"]))
                if group.get("input_activations"):
                    none = torch.empty(0, dtype=torch.int32)
                    activations[name] = (group["input_activations"]["type"],
                                         tensors.get(name + ".outlier_features", none).long())
    if "lm_head.weight" not in state:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    for name, module in model.named_modules():
        if name in activations:
            module.register_forward_pre_hook(
                lambda _, inputs, own=activations[name]: (quantize_tokens(inputs[0], *own),) + inputs[1:])
    return model


def documents(path, tokenizer):
    text = pathlib.Path(path).read_text()
    if path.endswith(".jsonl"):
        texts = [json.loads(line)["text"] for line in text.splitlines() if line.strip()]
    elif path.endswith(".json"):
        texts = json.loads(text)
    else:
        texts = [text]
    for one in texts:
        ids = tokenizer(one, add_special_tokens=False)["input_ids"]
        yield ([tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []) + ids


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact")
    parser.add_argument("--text", required=True)
    parser.add_argument("--max-tokens", type=int, default=0)
    parser.add_argument("--against")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.artifact)
    model = load(options.artifact)
    reference = load(options.against) if options.against else None
    window = model.config.max_position_embeddings
    nll = kl = 0.0
    same = predictions = 0
    for ids in documents(options.text, tokenizer):
        ids = ids[: options.max_tokens] if options.max_tokens else ids
        at = 0
        while at < len(ids):
            bos = [ids[0]] if at and ids[0] == tokenizer.bos_token_id else []
            part = bos + ids[at : at + window - len(bos)]
            at += window - len(bos)
            if len(part) < 2:
                continue
            with torch.no_grad():
                log_q = model(torch.tensor([part])).logits[0, :-1].double().log_softmax(-1)
                targets = torch.tensor(part[1:])
                nll -= log_q.gather(1, targets[:, None]).sum().item()
                predictions += len(part) - 1
                if reference is not None:
                    log_p = reference(torch.tensor([part])).logits[0, :-1].double().log_softmax(-1)
                    kl += (log_p.exp() * (log_p - log_q)).sum().item()
                    same += (log_p.argmax(-1) == log_q.argmax(-1)).sum().item()
    result = {"nll": nll / predictions, "perplexity": math.exp(nll / predictions), "predictions": predictions}
    if reference is not None:
        result |= {"kl": kl / predictions, "same_top": same / predictions}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
