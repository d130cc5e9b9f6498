#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs a compiler of CUDA and keeps what ptxas says of registers and spills beside the object, OBJECT.ptxas, for
tests/check-spills. Stands before ccache, which repeats the words of the compiler when it has the object already."""

import re
import subprocess
import sys

# The report of a kernel: lines of ptxas, and those indented beneath them.
REPORT = re.compile(r"ptxas info|\s+\d+ bytes (stack frame|gmem)|\s*Function properties")


def main():
    command = sys.argv[1:]
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
    lines = ended.stderr.splitlines(keepends=True)
    report = [line for line in lines if REPORT.match(line)]
    sys.stderr.write("".join(line for line in lines if not REPORT.match(line)))
    if ended.returncode == 0 and "-o" in command and "-c" in command:
        with open(command[command.index("-o") + 1] + ".ptxas", "w") as file:
            file.write("".join(report))
    return ended.returncode


if __name__ == "__main__":
    sys.exit(main())
