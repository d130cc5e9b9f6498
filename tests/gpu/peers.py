#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times what PyTorch itself offers for the shapes of bench_cuda: bf16, int4, int8 and fp8 products, and attention of one
query token over a cache. Checks each against f32 before it times; distinct weights beyond the cache in turn, replayed
as one graph, 20 warm-ups, the median of 100. Prints a JSON object per line; what cannot run has null and says why.

Needs PyTorch with CUDA. Quantizing the activations is not in the int8 and fp8 times: they favour the peer."""

import argparse
import json
import math
import statistics
import sys
import time

import torch

SHAPES = {  # name -> (out, in) of the products
    "8b": {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)},
    "70b": {"qkv": (10240, 8192), "o": (8192, 8192), "gate_up": (57344, 8192), "down": (8192, 28672)},
    "tiny": {"square": (256, 256)},
}
ROWS = (1, 4, 16, 64, 256, 2048)
CACHES = ((1, 2048), (1, 65536), (16, 4096), (64, 2048))  # sequences, tokens
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
DISTINCT_BYTES, MAX_COPIES, WARMUPS, ROUNDS = 256 << 20, 64, 20, 100
GROUP = 128


def seconds(launches, tiny):
    """The median time of one of the launches, replayed together."""
    if tiny:
        start = time.perf_counter()
        for launch in launches:
            launch()
        return (time.perf_counter() - start) / len(launches)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for launch in launches:
            launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    for _ in range(WARMUPS):
        graph.replay()
    times = []
    for _ in range(ROUNDS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1e-3 * begin.elapsed_time(end))
    return statistics.median(times) / len(launches)


# Of a kind: make(out, in, device) gives (weight as f32, what the product needs, its bytes); product(x, weight) the result.
def make_bf16(n, k, device):
    weight = (0.05 * torch.randn(n, k, device=device)).bfloat16()
    return weight.float(), weight, 2 * n * k


def product_bf16(x, weight):
    return x @ weight.t()


def make_int4(n, k, device):
    codes = torch.randint(0, 16, (n, k), dtype=torch.int32, device=device)
    scales = (0.01 + 0.01 * torch.rand(n, k // GROUP, device=device)).bfloat16()
    full = (codes - 8).float() * scales.float().repeat_interleave(GROUP, 1)
    packed = torch.ops.aten._convert_weight_to_int4pack((codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8), 8)
    scales_and_zeros = torch.stack([scales, torch.zeros_like(scales)], 2).transpose(0, 1).contiguous()
    return full, (packed, scales_and_zeros), n * k // 2 + 2 * n * k // GROUP


def product_int4(x, weight):
    return torch.ops.aten._weight_int4pack_mm(x, weight[0], GROUP, weight[1])


def make_int8(n, k, device):
    codes = torch.randint(-127, 128, (n, k), dtype=torch.int8, device=device)
    return codes.float(), codes, n * k


def product_int8(x, weight):
    return torch._int_mm(x, weight.t())


def make_fp8(n, k, device):
    codes = torch.randn(n, k, device=device).to(torch.float8_e4m3fn)
    scale = torch.full((1, n), 0.05, device=device)
    return codes.float() * 0.05, (codes, scale), n * k


def product_fp8(x, weight):
    one = torch.ones(x.shape[0], 1, device=x.device)
    return torch._scaled_mm(x, weight[0].t(), one, weight[1], out_dtype=torch.bfloat16)


def activations(kind, rows, k, device):
    x = torch.randn(rows, k, device=device)
    if kind == "int8":
        return (x * 30).round().clamp(-127, 127).to(torch.int8)
    return x.to(torch.float8_e4m3fn) if kind == "fp8" else x.bfloat16()


KINDS = {
    "bf16": (make_bf16, product_bf16),
    "int4": (make_int4, product_int4),
    "int8": (make_int8, product_int8),
    "fp8": (make_fp8, product_fp8),
}


def why(error):
    return str(error).splitlines()[0][:200]


def relative_error(result, expected):
    return float((result.float() - expected).norm() / expected.norm())


def linear(kind, model, device):
    tiny = model == "tiny"
    make, product = KINDS[kind]
    for shape, (n, k) in SHAPES[model].items():
        weights, size = [], 0
        full, weight, each = None, None, None
        try:
            full, weight, each = make(n, k, device)
            weights, size = [weight], each
            while size < DISTINCT_BYTES and len(weights) < MAX_COPIES and not tiny:
                weights.append(make(n, k, device)[1])
                size += each
        except (RuntimeError, NotImplementedError, AttributeError, TypeError) as error:
            yield {"shape": shape, "rows": None, "microseconds": None, "why": why(error)}
            continue
        for rows in ROWS[:2] if tiny else ROWS:
            record = {"shape": shape, "rows": rows, "out": n, "in": k, "copies": len(weights)}
            try:
                x = activations(kind, rows, k, device)
                error = relative_error(product(x, weight), x.float() @ full.t())
                record["relative_error"] = error
                if not error < 2e-2:
                    raise RuntimeError(f"the relative error is {error:.3g}: not timed")
                took = seconds([lambda w=w: product(x, w) for w in weights], tiny)
                record |= {"microseconds": 1e6 * took, "gb_per_s": 1e-9 * each / took,
                           "tflops": 2e-12 * rows * n * k / took}
            except (RuntimeError, NotImplementedError, AttributeError, TypeError) as error:
                record |= {"microseconds": None, "why": why(error)}
            yield record


def attention(model, device):
    tiny = model == "tiny"
    for sequences, tokens in ((2, 64),) if tiny else CACHES:
        record = {"shape": "attention", "sequences": sequences, "tokens": tokens}
        try:
            each = 4 * sequences * tokens * KV_HEADS * HEAD_DIM
            copies = 1 if tiny else max(1, min(MAX_COPIES, DISTINCT_BYTES // each))

            def draw(heads, length):
                return torch.randn(sequences, heads, length, HEAD_DIM, device=device).bfloat16()
            q = draw(HEADS, 1)
            caches = [(draw(KV_HEADS, tokens), draw(KV_HEADS, tokens)) for _ in range(copies)]

            def attend(k, v):
                return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
            k, v = (part.float().repeat_interleave(HEADS // KV_HEADS, 1) for part in caches[0])
            expected = torch.softmax(q.float() @ k.transpose(2, 3) / math.sqrt(HEAD_DIM), 3) @ v
            error = relative_error(attend(*caches[0]), expected)
            record["relative_error"] = error
            if not error < 2e-2:
                raise RuntimeError(f"the relative error is {error:.3g}: not timed")
            took = seconds([lambda c=c: attend(*c) for c in caches], tiny)
            record |= {"microseconds": 1e6 * took, "gb_per_s": 1e-9 * each / took}
        except (RuntimeError, NotImplementedError, AttributeError, TypeError) as error:
            record |= {"microseconds": None, "why": why(error)}
        yield record


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SHAPES, default="8b")
    parser.add_argument("--kind", choices=[*KINDS, "attention"], default="bf16")
    parser.add_argument("--device", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(1)
    device = "cpu" if options.model == "tiny" else f"cuda:{options.device}"
    if device != "cpu":
        torch.cuda.set_device(options.device)
    cases = attention(options.model, device) if options.kind == "attention" else linear(options.kind, options.model, device)
    for record in cases:
        print(json.dumps({"peer": "torch " + torch.__version__, "kind": options.kind, "model": options.model} | record),
              flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
