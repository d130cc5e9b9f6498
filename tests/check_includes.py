#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The one arrow of the floor plan: loadtest -> proto <- services -> engine -> kernels. Reads every include."""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
VOCABULARY = {"kernels/dtype.h", "kernels/scheme.h", "kernels/codec.h", "kernels/kv_codec.h", "kernels/ops.h", "kernels/check.h",
              "kernels/philox.h", "kernels/sampling.h"}
GRPC = r"(grpc|grpcpp|google/protobuf|nibble/v1)/"
# folder -> includes that must not occur in it
FORBIDDEN = {
    "kernels": rf"(engine|services|loadtest)/|prometheus/|{GRPC}",
    "kernels/cpu": r"kernels/cuda/|cuda|cublas",
    "kernels/cuda": r"kernels/cpu/",
    "engine": rf"(services|loadtest)/|kernels/(cpu|cuda)/|prometheus/|cuda|cublas|{GRPC}",
    "engine/base": r"engine/(?!base/)|kernels/",
    "engine/tokenizer": r"engine/(artifact|model|eval|quant|serve)/|kernels/",
    "engine/artifact": r"engine/(model|eval|quant|serve)/",
    "engine/model": r"engine/(eval|quant|serve)/",
    "engine/eval": r"engine/(quant|serve)/",
    "engine/quant": r"engine/serve/",
    "engine/serve": r"engine/quant/",
    "services": r"kernels/(cpu|cuda)/|loadtest/",
    "loadtest": r"(kernels|engine|services)/",
}


def includes(file):
    return re.findall(r'^#include [<"]([^">]+)[">]', file.read_text(), re.MULTILINE)


def main():
    wrong = []
    files = [f for top in ("kernels", "engine", "services", "loadtest") for f in (ROOT / top).rglob("*")
             if f.suffix in (".h", ".cc", ".cu", ".cuh")]
    for file in files:
        name = file.relative_to(ROOT).as_posix()
        for include in includes(file):
            for folder, pattern in FORBIDDEN.items():
                if name.startswith(folder + "/") and re.match(pattern, include):
                    wrong.append(f"{name} includes {include}")
            if name in VOCABULARY and "/" in include and include not in VOCABULARY:
                wrong.append(f"{name} includes {include}; the vocabulary uses the standard library only")
    for line in wrong:
        print(line)
    print(f"{len(files)} files read, {len(wrong)} includes against the arrow")
    return 1 if wrong or not files else 0


if __name__ == "__main__":
    sys.exit(main())
