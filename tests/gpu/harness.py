# SPDX-License-Identifier: Apache-2.0
"""What tests/gpu/run and tests/gpu/bench share: where the programs are, whether there is a GPU, and a file of
results that a run which was cut off goes on with. Standard library only."""

import argparse
import ctypes
import dataclasses
import glob
import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_BUDGET, EXIT_NO_GPU = 0, 1, 2, 3, 77
EXIT_CODES = """exit codes: 0 every case passed, 1 a case failed, 2 wrong command line, 3 the budget ended first (run again to
go on), 77 there is no GPU"""
TAIL = 4000  # characters of a case's output that are kept


@dataclasses.dataclass
class Case:
    """One program to run. `check(stdout)` returns figures, or raises AssertionError saying what is wrong; `program` is the
    file whose digest stands for what was measured, argv[0] if empty."""
    name: str
    argv: list
    limit_s: float = 20
    check: callable = None
    program: str = ""


def parser(description, stages, out):
    made = argparse.ArgumentParser(description=description, epilog=EXIT_CODES,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--stage", action="append", choices=stages, metavar="NAME",
                      help="only this one; may be given again: " + ", ".join(stages))
    made.add_argument("--budget-s", type=float, default=float("inf"), help="start no case after so many seconds")
    made.add_argument("--bundle", type=pathlib.Path, help="programs made by tests/gpu/bundle; default: build/release/bin")
    made.add_argument("--out", type=pathlib.Path, default=ROOT / "build" / out, help="results and working files")
    made.add_argument("--device", default="cuda:0", help="cuda:N, or cpu: the same stages without a GPU, to try the "
                      "script itself")
    made.add_argument("--filter", default="", help="only cases whose name matches this regular expression")
    return made


def no_gpu(ordinal):
    """Why cuda:ordinal cannot be used, or "" with the driver's version and the device's name."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"no driver: {error}", None
    version, count, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    if (code := driver.cuInit(0)) != 0:
        return f"the driver does not start: error {code}", None
    driver.cuDriverGetVersion(ctypes.byref(version))
    driver.cuDeviceGetCount(ctypes.byref(count))
    if ordinal >= count.value:
        return f"cuda:{ordinal} does not exist: there are {count.value} devices", None
    driver.cuDeviceGetName(name, 256, ordinal)
    return "", {"device": name.value.decode(), "driver": version.value}


def cublas_directory():
    """Where cuBLASLt is: beside the loader's own, in a toolkit, or in the wheel that PyTorch brings; "" = the loader's."""
    try:
        ctypes.CDLL("libcublasLt.so.13")
        return ""
    except OSError:
        pass
    site = [sysconfig.get_paths()["purelib"], *sys.path]
    places = ["/usr/local/cuda*/lib64", "/usr/local/cuda*/targets/*/lib"]
    places += [f"{path}/nvidia/{part}/lib" for path in site if path for part in ("cu13", "cublas")]
    for place in places:
        for found in sorted(glob.glob(place + "/libcublasLt.so.1[23]"), reverse=True):
            return str(pathlib.Path(found).parent)
    return None


def sha256(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


class Programs:
    """The directory of the built programs, and the environment that they need."""

    def __init__(self, options):
        library_path = []
        self.commit = "unknown"
        if options.bundle:
            place = options.out / "bundle"
            mark = place / "sha256"
            digest = sha256(options.bundle)
            if not mark.exists() or mark.read_text() != digest:
                with tarfile.open(options.bundle) as archive:
                    archive.extractall(place, filter="data")
                mark.write_text(digest)
            self.bin = place / "bin"
            library_path.append(str(place / "lib"))
            self.commit = (place / "commit").read_text().strip()
        else:
            self.bin = pathlib.Path(os.environ.get("NIBBLE_BIN_DIR", ROOT / "build" / "release" / "bin"))
            self.commit = commit()
        self.cublas = cublas_directory()
        if self.cublas:
            library_path.append(self.cublas)
        self.env = dict(os.environ)
        self.env["LD_LIBRARY_PATH"] = ":".join(library_path + [p for p in [os.environ.get("LD_LIBRARY_PATH")] if p])

    def path(self, name):
        return str(self.bin / name)


def commit():
    """The commit of the working tree, "-dirty" if it was changed."""
    try:
        found = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"],
                               capture_output=True, text=True)
    except OSError:
        return "unknown"
    return found.stdout.strip() or "unknown"


def run(argv, limit_s, env):
    """(exit code or None after the limit, stdout, stderr); the whole process group ends with it."""
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
                               env=env, start_new_session=True)
    try:
        out, err = process.communicate(timeout=limit_s)
        return process.returncode, out, err
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        return None, out, err


class Results:
    """results.jsonl in the output directory: an object for each case, written as soon as it is known. A case that is
    there as passed, by the same program and library on the same device, is not run again."""

    def __init__(self, options, programs, device):
        options.out.mkdir(parents=True, exist_ok=True)
        self.path = options.out / "results.jsonl"
        self.programs, self.device = programs, device
        self.filter = re.compile(options.filter)
        self.end = time.monotonic() + options.budget_s
        self.counts = {}  # stage -> status -> cases
        self.failures = []
        self._digests = {}
        self.library = self.digest(programs.path("libnibble_cuda.so"))
        self._passed = {}  # figures of what passed
        for record in self.records():
            key = tuple(record.get(field) for field in ("stage", "case", "sha256", "library_sha256", "device"))
            if record.get("status") == "passed":
                self._passed[key] = record.get("figures")
            else:
                self._passed.pop(key, None)

    def records(self):
        """What the file holds."""
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            try:
                yield json.loads(line)
            except ValueError:
                pass  # the line that was being written when a run was cut off

    def digest(self, program):
        if program not in self._digests:
            self._digests[program] = sha256(program) if os.path.isfile(program) else None
        return self._digests[program]

    def add(self, stage, case, status, program=None, seconds=0.0, output="", figures=None):
        record = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": self.programs.commit,
                  "program": os.path.basename(program) if program else None,
                  "sha256": self.digest(program) if program else None, "library_sha256": self.library,
                  "device": self.device, "stage": stage, "case": case, "status": status, "seconds": round(seconds, 3), "figures": figures,
                  "output": output[-TAIL:]}
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._count(stage, status)
        if status == "passed":
            self._passed[self._key(stage, case, program)] = figures
        if status == "failed":
            self.failures.append((stage, case, output.strip().splitlines()[-1:] or [""]))
        print(f"{status:8s} {seconds:7.2f} s  {stage}: {case}", flush=True)

    def _key(self, stage, case, program):
        return (stage, case, self.digest(program) if program else None, self.library, self.device)

    def figures(self, stage, case, program):
        """What the case gave when it passed, now or before; None if it did not."""
        return self._passed.get(self._key(stage, case, program))

    def _count(self, stage, status):
        per_status = self.counts.setdefault(stage, {})
        per_status[status] = per_status.get(status, 0) + 1

    def wanted(self, stage, case, program):
        """Whether the case is to be run now."""
        if not self.filter.search(case):
            return False
        if self._key(stage, case, program) in self._passed:
            self._count(stage, "passed before")
            return False
        if time.monotonic() > self.end:
            self._count(stage, "not started")
            return False
        return True

    def measure(self, stage, case):
        """Runs one case and records it."""
        program = case.program or case.argv[0]
        if not self.wanted(stage, case.name, program):
            return
        start = time.monotonic()
        try:
            code, out, err = run(case.argv, case.limit_s, self.programs.env)
        except OSError as error:
            self.add(stage, case.name, "failed", program, 0, str(error))
            return
        seconds = time.monotonic() - start
        text = out + err
        figures = None
        if code is None:
            status, text = "failed", f"{text}\nstopped after {case.limit_s} s"
        elif code != 0:
            status, text = "failed", f"{text}\nexit code {code}"
        else:
            status = "passed"
            try:
                figures = case.check(out) if case.check else None
            except (AssertionError, ValueError, KeyError, TypeError) as error:
                status, text = "failed", f"{text}\n{type(error).__name__}: {error}"
        self.add(stage, case.name, status, program, seconds, text, figures)

    def close(self):
        """The summary; the exit code."""
        columns = ("passed", "passed before", "failed", "not started")
        print(f"\n{'stage':12s}" + "".join(f"{column:>15s}" for column in columns))
        for stage, per_status in self.counts.items():
            print(f"{stage:12s}" + "".join(f"{per_status.get(column, 0):15d}" for column in columns))
        for stage, case, last in self.failures:
            print(f"failed: {stage}: {case}: {last[0]}")
        print(f"results: {self.path}")
        if self.failures:
            return EXIT_FAILED
        return EXIT_BUDGET if any("not started" in counts for counts in self.counts.values()) else EXIT_OK


def begin(name, options):
    """Programs and results of a run after the look for a GPU; exits where there is none."""
    programs = Programs(options)
    if not os.access(programs.path("nibble"), os.X_OK):
        print(f"{name}: {programs.path('nibble')} is not there: build first, or give --bundle", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    if options.device == "cpu":
        return programs, Results(options, programs, "cpu")
    match = re.fullmatch(r"cuda:(\d+)", options.device)
    if not match:
        print(f"{name}: --device is {options.device!r}; it must be cuda:N or cpu", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    why, found = no_gpu(int(match.group(1)))
    if not why and programs.cublas is None:
        why = "cuBLASLt is neither with the loader, nor in a toolkit, nor beside PyTorch"
    results = Results(options, programs, found["device"] if found else None)
    if why:
        results.add("probe", "gpu", "absent", output=why)
        print(f"{name}: no GPU: {why}")
        sys.exit(EXIT_NO_GPU)
    results.add("probe", "gpu", "passed", figures={**found, "cublas": programs.cublas or "the loader's"})
    return programs, results
