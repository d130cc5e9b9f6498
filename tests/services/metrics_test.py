#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus scrapes a live server under load; every series that rules and dashboards name
must be there."""

import json
import pathlib
import re
import shutil
import socket
import subprocess
import tempfile
import time
import unittest
import urllib.parse
import urllib.request

import live_server
from live_server import ROOT, Server, eventually, request

PROMETHEUS_DIR = ROOT / "deploy" / "prometheus"
RULES = ("rules.yml", "alerts.yml", "vllm-names.yml")
NAME = re.compile(r"\b(?:nibble|vllm)[:_][a-z0-9_:]+")


def promtool(*arguments):
    ran = subprocess.run(["promtool", *arguments], cwd=PROMETHEUS_DIR, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def expressions(text):
    """The expressions of a rules file."""
    return re.findall(r"expr: (?:>-\n((?:\s{10,}.*\n)+)|(.*)\n)", text)


def named_series():
    """Every series that a rule, an alert or a dashboard names."""
    names = set()
    for file in RULES:
        for block, line in expressions((PROMETHEUS_DIR / file).read_text()):
            names.update(NAME.findall(block or line))
        names.update(re.findall(r"record: (\S+)", (PROMETHEUS_DIR / file).read_text()))
    for file in (ROOT / "deploy" / "grafana").glob("*.json"):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel["targets"]:
                names.update(NAME.findall(target["expr"]))
    return names


def selected_values():
    """(series, label, value) for every value that a rule, an alert or a dashboard selects series by."""
    texts = [(PROMETHEUS_DIR / file).read_text() for file in RULES]
    for file in (ROOT / "deploy" / "grafana").glob("*.json"):
        texts += [target["expr"] for panel in json.loads(file.read_text())["panels"] for target in panel["targets"]]
    found = set()
    for name, selectors in re.findall(r"\b(nibble[:_][a-z0-9_:]+)\{([^}]*)\}", "\n".join(texts)):
        for label, values in re.findall(r'(\w+)=~?"([^"$]+)"', selectors):
            found.update((name, label, value) for value in values.split("|"))
    return found


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Rules(unittest.TestCase):
    def test_promtool_accepts_the_configuration_and_the_rules(self):
        promtool("check", "config", "prometheus.yml")
        promtool("check", "rules", *RULES)

    def test_the_rules_compute_what_their_tests_expect(self):
        promtool("test", "rules", "tests.yml")

    def test_every_alert_has_a_severity_and_says_what_to_do(self):
        text = (PROMETHEUS_DIR / "alerts.yml").read_text()
        alerts = text.count("- alert:")
        self.assertGreater(alerts, 10)
        for field in ("severity: ", "summary: ", "description: "):
            self.assertEqual(text.count(field), alerts, field)

    def test_a_histogram_goes_to_vllms_name_part_by_part(self):
        text = (PROMETHEUS_DIR / "vllm-names.yml").read_text()
        parts = re.findall(r"record: (vllm:\S+)_(bucket|sum|count)\n\s+expr: (nibble_\w+)_(bucket|sum|count)\b", text)
        self.assertEqual(len(parts), len(re.findall(r"record: \S+_(?:bucket|sum|count)\n", text)))
        sources = {}
        for theirs, part, ours, from_part in parts:
            self.assertEqual(part, from_part, theirs)
            sources.setdefault((theirs, ours), []).append(part)
        for names, found in sources.items():
            self.assertEqual(found, ["bucket", "sum", "count"], names)

    def test_every_metric_that_rules_and_dashboards_name_is_in_the_catalogue(self):
        catalogue = (ROOT / "services" / "common" / "metrics_catalogue.cc").read_text()
        known = set(re.findall(r'"(nibble_[a-z0-9_]+)"', catalogue))
        recorded = set()
        for file in RULES:
            recorded.update(re.findall(r"record: (\S+)", (PROMETHEUS_DIR / file).read_text()))
        for name in named_series() - recorded:
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            self.assertTrue(name in known or base in known, name)


class Prometheus:
    """Prometheus scraping one address every half second, with the project's rules."""

    def __init__(self, target):
        self.directory = tempfile.TemporaryDirectory(prefix="nibble-prometheus-")
        directory = pathlib.Path(self.directory.name)
        for file in RULES:
            shutil.copy(PROMETHEUS_DIR / file, directory)
        config = (PROMETHEUS_DIR / "prometheus.yml").read_text()
        config = config.replace("interval: 10s", "interval: 500ms").replace("127.0.0.1:7461", target)
        (directory / "prometheus.yml").write_text(config)
        self.url = f"http://127.0.0.1:{free_port()}"
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={directory}/prometheus.yml",
             f"--storage.tsdb.path={directory}/data",
             f"--web.listen-address={self.url.removeprefix('http://')}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def query(self, expression):
        """The result of an instant query; [] while Prometheus does not answer."""
        url = f"{self.url}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
        try:
            return json.load(urllib.request.urlopen(url, timeout=10))["data"]["result"]
        except OSError:
            return []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(20)
        self.directory.cleanup()


class LiveServer(unittest.TestCase):
    def quantize(self, server):
        """A job from upload to publication, so that the quantization service has something to tell."""
        subprocess.run(
            [live_server.NIBBLE, "quantize", "--server", server.address, "--model",
             str(live_server.MODELS / "model"), "--recipe", "gptq", "--scheme", "int4-g128",
             "--calibration", str(live_server.MODELS / "calibration.jsonl"), "--name", "measured",
             "--samples", "8", "--length", "128", "--eval-tokens", "1024",
             "--gate", "ppl<=2,kl<=1", "--eval", str(live_server.MODELS / "heldout.jsonl"),
             "--watch"], check=True, capture_output=True, text=True, timeout=900)

    def test_every_series_is_there_and_outcomes_sum_to_accepted_requests(self):
        with Server(roles="quantization,generation") as server:
            target = server.metrics_url.removeprefix("http://").removesuffix("/metrics")
            with Prometheus(target) as prometheus:
                self.assertTrue(eventually(lambda: prometheus.query('up{job="nibble"} == 1'), 60))
                self.quantize(server)
                load = subprocess.run(
                    [live_server.NIBBLE_LOAD, "--server", server.address, "--model", "demo",
                     "--rate", "20", "--duration", "8", "--prompt-tokens", "32", "--max-tokens", "16",
                     "--spread", "0.5", "--abort-fraction", "0.2", "--json"],
                    check=True, capture_output=True, text=True).stdout
                self.assertGreater(json.loads(load)["outcomes"]["OK/length"], 20)

                for name, labels, wanted in (
                        ("nibble_jobs", {"state": "succeeded", "recipe": "gptq"}, 1),
                        ("nibble_jobs_finished_total", {"state": "succeeded", "recipe": "gptq"}, 1),
                        ("nibble_job_attempts_total", {"recipe": "gptq"}, 1),
                        ("nibble_job_queue_wait_seconds_count", {}, 1),
                        ("nibble_block_seconds_count", {"recipe": "gptq"}, 8),
                        ("nibble_calibration_tokens_total", {"recipe": "gptq"}, 8 * 128),
                        ("nibble_artifact_kl_nats_count", {"recipe": "gptq"}, 1),
                        ("nibble_artifact_perplexity_ratio_count", {"recipe": "gptq"}, 1),
                        ("nibble_leases_lost_total", {}, 0),
                        ("nibble_worker_restarts_total", {}, 0)):
                    self.assertTrue(eventually(lambda: server.metric(name, **labels) == wanted), name)
                self.assertGreater(server.metric("nibble_artifact_bytes"), 5e6)
                self.assertAlmostEqual(
                    server.metric("nibble_artifact_bits_per_weight", recipe="gptq"), 4.126, delta=0.01)

                for name, label, value in selected_values():
                    self.assertTrue(eventually(lambda: prometheus.query(f'{name}{{{label}="{value}"}}')),
                                    f"no {name} has {label}={value}")

                missing = lambda: sorted(n for n in named_series() if not prometheus.query(n))
                eventually(lambda: not missing(), 30)
                self.assertEqual(missing(), [])

                value = lambda expression: float(prometheus.query(expression)[0]["value"][1])
                # Two queries may see two scrapes: all three agree once the last one is in.
                self.assertTrue(eventually(
                    lambda: value("sum(nibble_requests_finished_total)") ==
                    value("sum(nibble_requests_accepted_total)") ==
                    server.metric("nibble_requests_accepted_total")))
                # vLLM's names carry nibble's numbers, bucket by bucket.
                for ours, theirs in (("nibble_time_to_first_token_seconds", "time_to_first_token_seconds"),
                                     ("nibble_inter_token_latency_seconds", "time_per_output_token_seconds"),
                                     ("nibble_request_latency_seconds", "e2e_request_latency_seconds")):
                    for part in ("bucket", "sum", "count"):
                        self.assertTrue(eventually(lambda: not prometheus.query(
                            f"{ours}_{part} - on(model_name, engine, le) vllm:{theirs}_{part} != 0")
                            and prometheus.query(f"vllm:{theirs}_{part}")), theirs)


if __name__ == "__main__":
    unittest.main(verbosity=2)
