# SPDX-License-Identifier: Apache-2.0
"""A real `nibble serve` for tests, and a client generated from the protos as any user would make one.

Binaries come from $NIBBLE_BIN_DIR, otherwise build/release/bin.
"""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import grpc
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("NIBBLE_BIN_DIR", ROOT / "build" / "release" / "bin"))
NIBBLE = BIN / "nibble"
NIBBLE_LOAD = BIN / "nibble-load"
MODELS = ROOT / "deploy" / "demo-model"  # model root; the demo model is "model" beneath it

HEALTH_PROTO = """
syntax = "proto3";
package grpc.health.v1;
message HealthCheckRequest { string service = 1; }
message HealthCheckResponse {
  enum ServingStatus { UNKNOWN = 0; SERVING = 1; NOT_SERVING = 2; SERVICE_UNKNOWN = 3; }
  ServingStatus status = 1;
}
service Health {
  rpc Check(HealthCheckRequest) returns (HealthCheckResponse);
  rpc Watch(HealthCheckRequest) returns (stream HealthCheckResponse);
}
"""

REFLECTION_PROTO = """
syntax = "proto3";
package grpc.reflection.v1alpha;
message ServerReflectionRequest {
  oneof message_request { string file_containing_symbol = 4; string list_services = 7; }
}
message FileDescriptorResponse { repeated bytes file_descriptor_proto = 1; }
message ServiceResponse { string name = 1; }
message ListServiceResponse { repeated ServiceResponse service = 1; }
message ServerReflectionResponse {
  oneof message_response {
    FileDescriptorResponse file_descriptor_response = 4;
    ListServiceResponse list_services_response = 6;
  }
}
service ServerReflection {
  rpc ServerReflectionInfo(stream ServerReflectionRequest) returns (stream ServerReflectionResponse);
}
"""

_generated = tempfile.TemporaryDirectory(prefix="nibble-protos-")


def _generate():
    """Compiles the contract (and those of health and reflection, which gRPC servers share) to Python."""
    out = pathlib.Path(_generated.name)
    (out / "health.proto").write_text(HEALTH_PROTO)
    (out / "reflection.proto").write_text(REFLECTION_PROTO)
    well_known = pathlib.Path(protoc.__file__).parent / "_proto"
    sources = [str(p.relative_to(ROOT / "proto")) for p in (ROOT / "proto").rglob("*.proto")]
    arguments = ["protoc", f"-I{ROOT / 'proto'}", f"-I{out}", f"-I{well_known}",
                 f"--python_out={out}", f"--grpc_python_out={out}"]
    if protoc.main(arguments + sources + ["health.proto", "reflection.proto"]) != 0:
        raise RuntimeError("the protos do not compile")
    sys.path.insert(0, str(out))


_generate()
from nibble.v1 import generation_pb2 as pb  # noqa: E402
from nibble.v1 import generation_pb2_grpc as pb_grpc  # noqa: E402
from nibble.v1 import quantization_pb2 as quantization_pb  # noqa: E402
from nibble.v1 import quantization_pb2_grpc as quantization_pb_grpc  # noqa: E402
import health_pb2  # noqa: E402
import health_pb2_grpc  # noqa: E402
import reflection_pb2  # noqa: E402
import reflection_pb2_grpc  # noqa: E402


class Server:
    """`nibble serve` on free ports; ready when the constructor returns."""

    def __init__(self, *arguments, load=("demo=model",), address="127.0.0.1:0", channel=None,
                 model_root=MODELS, roles="generation"):
        self.data = tempfile.TemporaryDirectory(prefix="nibble-data-")
        command = [str(NIBBLE), "serve", "--data-dir", self.data.name, "--address", address,
                   "--metrics-address", "127.0.0.1:0", "--roles", roles,
                   "--model-root", str(model_root), *arguments]
        for entry in load:
            command += ["--load", entry]
        self.log = tempfile.TemporaryFile(mode="w+")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.process.stdout.readline()
        if not line.startswith("ready"):
            self.process.wait()
            raise RuntimeError(f"not ready: {line!r}\n{self.stderr()}")
        self.address = re.search(r"\baddress=(\S+)", line).group(1)
        self.metrics_url = re.search(r"metrics=(\S+)", line).group(1)
        self.channel = channel(self.address) if channel else grpc.insecure_channel(self.address)
        self.stub = pb_grpc.GenerationServiceStub(self.channel)
        self.quantization = quantization_pb_grpc.QuantizationServiceStub(self.channel)

    def stderr(self):
        self.log.seek(0)
        return self.log.read()

    def metrics(self):
        """Every series by its full name, as it stands in the exposition."""
        text = urllib.request.urlopen(self.metrics_url, timeout=10).read().decode()
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    def metric(self, name, **labels):
        """The sum of all series of that name that carry these labels."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(value for series, value in self.metrics().items()
                   if series.split("{")[0] == name and all(w in series for w in wanted))

    def health(self, service=""):
        stub = health_pb2_grpc.HealthStub(self.channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

    def stop(self, timeout=60):
        """SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            self.channel.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
        self.log.close()
        self.data.cleanup()


def request(prompt="The old house", model="demo", *, max_tokens=8, temperature=0.0, seed=1, **fields):
    """A GenerateRequest with the usual parts filled in; `fields` are set on top of it."""
    made = pb.GenerateRequest(model=model)
    if isinstance(prompt, str):
        made.text = prompt
    else:
        made.token_ids.ids.extend(prompt)
    made.sampling.temperature = temperature
    made.sampling.seed = seed
    made.stopping.max_tokens = max_tokens
    made.MergeFrom(pb.GenerateRequest(**fields))
    return made


def eventually(condition, seconds=20):
    """Whether `condition` comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def in_parallel(function, arguments):
    """function(argument) for each, all at once; the results in order."""
    results = [None] * len(arguments)

    def run(index, argument):
        results[index] = function(argument)

    threads = [threading.Thread(target=run, args=item) for item in enumerate(arguments)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@contextlib.contextmanager
def fails_with(test, code, *words):
    """The block must fail with this status code, its message naming each of the words."""
    with test.assertRaises(grpc.RpcError) as caught:
        yield caught
    test.assertEqual(caught.exception.code(), code, caught.exception.details())
    for word in words:
        test.assertIn(word, caught.exception.details())
