#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/gpu/run and tests/gpu/bench where there is no GPU: they say so, and what they do is right on the CPU and on the
emulator of kernels. Programs come from $NIBBLE_BIN_DIR."""

import ctypes
import importlib.machinery
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import unittest

import harness

HERE = pathlib.Path(__file__).resolve().parent


def has_driver():
    try:
        ctypes.CDLL("libcuda.so.1")
        return True
    except OSError:
        return False


class ScriptTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="nibble-gpu-")
        self.addCleanup(directory.cleanup)
        self.out = pathlib.Path(directory.name)

    def script(self, name, *arguments):
        return subprocess.run([sys.executable, str(HERE / name), "--out", str(self.out), *arguments],
                              capture_output=True, text=True, timeout=280)

    def records(self):
        return [json.loads(line) for line in (self.out / "results.jsonl").read_text().splitlines()]


@unittest.skipIf(has_driver(), "there is a driver")
class WithoutGpu(ScriptTest):
    def test_both_say_so_and_record_it(self):
        for name in ("run", "bench"):
            ended = self.script(name)
            self.assertEqual(ended.returncode, harness.EXIT_NO_GPU, ended.stderr)
            self.assertIn(f"tests/gpu/{name}: no GPU: no driver", ended.stdout.splitlines()[-1])
            self.assertEqual([(r["stage"], r["case"], r["status"]) for r in self.records()][-1],
                             ("probe", "gpu", "absent"))


@unittest.skipIf(has_driver(), "there is a driver")
class Conformance(ScriptTest):
    def test_lists_its_cases_but_runs_none_without_a_gpu(self):
        program = harness.Programs(harness.parser("", ["any"], "x").parse_args([])).path("cuda_conformance_test")
        listed = subprocess.run([program, "--gtest_list_tests"], capture_output=True, text=True)
        self.assertEqual(listed.returncode, 0, listed.stderr)
        self.assertIn("CudaHadamardTest.", listed.stdout)
        ran = subprocess.run([program], capture_output=True, text=True)
        self.assertEqual(ran.returncode, harness.EXIT_NO_GPU)
        self.assertRegex(ran.stdout, r"^cuda_conformance_test: no CUDA device: .*\n$")


class OnTheCpu(ScriptTest):
    def test_kernels_run_case_by_case_and_once(self):
        arguments = ("--device", "cpu", "--stage", "kernels", "--filter", "CudaHadamard")
        first = self.script("run", *arguments)
        self.assertEqual(first.returncode, 0, first.stdout + first.stderr)
        records = self.records()
        self.assertGreaterEqual(len(records), 2)
        for record in records:
            self.assertEqual((record["status"], record["program"]), ("passed", "cuda_kernels_test"))
            self.assertEqual(len(record["sha256"]), 64)
        again = self.script("run", *arguments)
        self.assertEqual(again.returncode, 0)
        self.assertEqual(self.records(), records)

    def test_engine(self):
        ended = self.script("run", "--device", "cpu", "--stage", "engine", "--filter", "int4-g128, KV bf16|bf16, KV int4")
        self.assertEqual(ended.returncode, 0, ended.stdout + ended.stderr)
        self.assertEqual(len(self.records()), 6)
        for record in self.records():
            if record["case"].endswith("replayed"):
                continue
            self.assertEqual(record["figures"]["kl"], 0, "the CPU from itself")
            self.assertEqual(record["figures"]["predictions"], 4096)

    def test_jobs(self):
        ended = self.script("run", "--device", "cpu", "--stage", "jobs", "--filter", "rtn")
        self.assertEqual(ended.returncode, 0, ended.stdout + ended.stderr)
        cpu, device, again = (record["figures"] for record in self.records())
        self.assertEqual(cpu["weights"], device["weights"])
        self.assertEqual(cpu["weights"], again["weights"])
        self.assertGreater(cpu["from_first_block_to_published_s"], 0)

    def test_server(self):
        ended = self.script("run", "--device", "cpu", "--stage", "server")
        self.assertEqual(ended.returncode, 0, ended.stdout + ended.stderr)
        cases = {record["case"]: record for record in self.records()}
        self.assertEqual(cases["64 streams, half cancelled"]["figures"]["requests"], 256)
        self.assertEqual(len(cases), 2)

    def test_bench(self):
        ended = self.script("bench", "--device", "cpu", "--stage", "linear", "--stage", "attention",
                            "--stage", "row_ops")
        self.assertEqual(ended.returncode, 0, ended.stdout + ended.stderr)
        self.assertIn("tiny square          9 int4-g128", ended.stdout)
        self.assertRegex(ended.stdout, r"tiny +2 +70 +1 k8v4 .* null +null +null +null")

    def test_sweep(self):
        ended = self.script("bench", "--device", "cpu", "--stage", "sweep", "--filter", "int8")
        self.assertEqual(ended.returncode, 0, ended.stdout + ended.stderr)
        self.assertRegex(ended.stdout, r"tiny square +9 int8 +16 +3 .* chosen")
        self.assertRegex(ended.stdout, r"tiny square +9 int8 +warps .* chosen")
        products, attention = (record["figures"] for record in self.records())
        self.assertGreater(len([found for found in attention if found["case"] == "attention_sweep"]), 1)
        swept = [found for found in products if found["case"] == "sweep"]
        ways = [found for found in products if found["case"] == "ways"]
        self.assertEqual({found["way"] for found in ways}, {"warps", "library"})
        for rows in (1, 9):
            for sweep in (swept, ways):
                of_rows = [found for found in sweep if found["rows"] == rows]
                self.assertEqual(sum(found["chosen"] for found in of_rows), 1)
                self.assertEqual(sum(found["best"] for found in of_rows), 1)

    def test_refuses_a_device_that_is_none(self):
        ended = self.script("run", "--device", "gpu0")
        self.assertEqual(ended.returncode, harness.EXIT_USAGE)
        self.assertIn("--device is 'gpu0'; it must be cuda:N or cpu", ended.stderr)


class Bundle(ScriptTest):
    def test_takes_our_libraries_and_leaves_the_systems(self):
        loader = importlib.machinery.SourceFileLoader("bundle", str(HERE / "bundle"))
        spec = importlib.util.spec_from_loader("bundle", loader)
        bundle = importlib.util.module_from_spec(spec)
        loader.exec_module(bundle)
        programs = harness.Programs(harness.parser("", ["any"], "x").parse_args([]))
        found, missing = bundle.libraries([programs.path("nibble")])
        self.assertEqual(missing, set())
        self.assertTrue(any(name.startswith("libgrpc++.so") for name in found))
        self.assertFalse([name for name in found if name.startswith(("libc.so", "ld-linux", "libm.so"))])

    def test_names_what_is_not_built(self):
        ended = subprocess.run([sys.executable, str(HERE / "bundle"), "--bin", str(self.out)], capture_output=True,
                               text=True)
        self.assertEqual(ended.returncode, 2)
        self.assertIn("not built: ", ended.stderr)


class Harness(ScriptTest):
    """Results and cases, with programs of the shell."""

    def results(self, *arguments):
        options = harness.parser("", ["any"], "x").parse_args(["--out", str(self.out), *arguments])
        return harness.Results(options, harness.Programs(options), "some GPU")

    def case(self, text, check=None, limit=20, name="case"):
        program = self.out / "program"
        if not program.exists() or program.read_text() != text:
            program.write_text(text)
        program.chmod(0o755)
        return harness.Case(name, [str(program)], limit, check)

    def status(self, results, case):
        before = len(self.records()) if results.path.exists() else 0
        results.measure("stage", case)
        after = self.records() if results.path.exists() else []
        return after[-1]["status"] if len(after) > before else None

    def test_a_program_that_fails_hangs_or_is_not_there_fails_its_case_alone(self):
        results = self.results()
        self.assertEqual(self.status(results, self.case("#!/bin/sh\necho why >&2; exit 3\n")), "failed")
        self.assertEqual(self.records()[-1]["output"], "why\n\nexit code 3")
        start = time.monotonic()
        self.assertEqual(self.status(results, self.case("#!/bin/sh\nsleep 60 & wait\n", limit=0.3)), "failed")
        self.assertLess(time.monotonic() - start, 30, "the child of the program holds the output open")
        self.assertEqual(self.status(results, harness.Case("none", [str(self.out / "absent")])), "failed")
        self.assertEqual(self.status(results, self.case("#!/bin/sh\necho 5\n")), "passed")
        self.assertEqual(results.close(), harness.EXIT_FAILED)

    def test_a_wrong_result_fails_and_a_right_one_keeps_its_figures(self):
        def check(out):
            assert int(out) == 5, f"{out.strip()} is not 5"
            return {"value": int(out)}
        results = self.results()
        self.assertEqual(self.status(results, self.case("#!/bin/sh\necho 4\n", check)), "failed")
        self.assertIn("4 is not 5", self.records()[-1]["output"])
        self.assertEqual(self.status(results, self.case("#!/bin/sh\necho 5\n", check, name="other")), "passed")
        self.assertEqual(self.records()[-1]["figures"], {"value": 5})

    def test_what_passed_is_not_run_again_unless_the_program_changed_or_it_failed_since(self):
        good, other = "#!/bin/sh\ntrue\n", "#!/bin/sh\ntrue # changed\n"
        self.assertEqual(self.status(self.results(), self.case(good)), "passed")
        with (self.out / "results.jsonl").open("a") as file:
            file.write('{"stage": "stage", "ca')  # a run that was cut off while it wrote
            file.write("\n")
        results = self.results()
        self.assertFalse(results.wanted("stage", "case", str(self.out / "program")))
        self.assertEqual(results.close(), harness.EXIT_OK)
        case = self.case(other)
        self.assertTrue(self.results().wanted("stage", "case", case.argv[0]))

    def test_a_budget_that_is_spent_starts_nothing(self):
        results = self.results("--budget-s", "0")
        time.sleep(0.01)
        self.assertIsNone(self.status(results, self.case("#!/bin/sh\ntrue\n")))
        self.assertEqual(results.close(), harness.EXIT_BUDGET)


if __name__ == "__main__":
    unittest.main()
