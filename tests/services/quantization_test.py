#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The contract and the quantization service from outside: a real server and its real workers."""

import hashlib
import os
import pathlib
import signal
import tempfile
import unittest

import grpc
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

import live_server
from live_server import ROOT, Server, eventually, fails_with, quantization_pb as pb, request

Code = grpc.StatusCode
BOTH = "quantization,generation"
SERVICES = ("nibble.v1.QuantizationService", "nibble.v1.GenerationService")
MODEL = live_server.MODELS / "model"
CHUNK = 1 << 20


def announced(path, size=None):
    data = path.read_bytes()
    return pb.UploadFile(name=path.name, size_bytes=len(data) if size is None else size,
                         sha256=hashlib.sha256(data).hexdigest())


def chunks(upload, path, offset):
    """The messages that send `path` from `offset` on."""
    data = path.read_bytes()
    for begin in range(offset, len(data), CHUNK):
        yield pb.WriteUploadRequest(name=upload.name, file=path.name, offset=begin,
                                    data=data[begin:begin + CHUNK])


def children(pid):
    """Process ids of the processes that `pid` started."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # ended meanwhile
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


class Contract(unittest.TestCase):
    def test_every_message_field_and_method_is_documented(self):
        with tempfile.TemporaryDirectory() as directory:
            out = pathlib.Path(directory) / "set"
            well_known = pathlib.Path(protoc.__file__).parent / "_proto"
            sources = sorted(str(p.relative_to(ROOT / "proto")) for p in (ROOT / "proto").rglob("*.proto"))
            self.assertEqual(protoc.main(
                ["protoc", f"-I{ROOT / 'proto'}", f"-I{well_known}", "--include_source_info",
                 f"--descriptor_set_out={out}", *sources]), 0)
            files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
        bare = []
        for file in files:
            documented = {tuple(l.path) for l in file.source_code_info.location
                          if l.leading_comments.strip()}
            def look(path, name):
                if path not in documented:
                    bare.append(name)
            def look_at_message(message, path, name):
                look(path, name)
                for i, field in enumerate(message.field):
                    look(path + (2, i), f"{name}.{field.name}")
                for i, nested in enumerate(message.nested_type):
                    look_at_message(nested, path + (3, i), f"{name}.{nested.name}")
                for i, enum in enumerate(message.enum_type):
                    look_at_enum(enum, path + (4, i), f"{name}.{enum.name}")
            def look_at_enum(enum, path, name):
                look(path, name)
                for i, value in enumerate(enum.value):
                    look(path + (2, i), f"{name}.{value.name}")
            for i, message in enumerate(file.message_type):
                look_at_message(message, (4, i), message.name)
            for i, enum in enumerate(file.enum_type):
                look_at_enum(enum, (5, i), enum.name)
            for i, service in enumerate(file.service):
                look((6, i), service.name)
                for j, method in enumerate(service.method):
                    look((6, i, 2, j), f"{service.name}.{method.name}")
        self.assertFalse(bare, "without a comment: " + ", ".join(bare))

    def test_one_address_carries_both_services_health_and_reflection(self):
        with Server(roles=BOTH) as server:
            for name in ("", *SERVICES, "nibble.v1.GenerationService/demo"):
                self.assertEqual(server.health(name), "SERVING", name)
            stub = live_server.reflection_pb2_grpc.ServerReflectionStub(server.channel)
            asked = live_server.reflection_pb2.ServerReflectionRequest
            listed, described = stub.ServerReflectionInfo(iter(
                [asked(list_services=""), asked(file_containing_symbol=SERVICES[0])]))
            names = [s.name for s in listed.list_services_response.service]
            self.assertLessEqual({*SERVICES, "grpc.health.v1.Health"}, set(names))
            files = described.file_descriptor_response.file_descriptor_proto
            self.assertIn("nibble/v1/quantization.proto",
                          [descriptor_pb2.FileDescriptorProto.FromString(f).name for f in files])

    def test_a_role_that_is_not_run_is_unimplemented(self):
        with Server(roles="quantization", load=()) as server:
            self.assertEqual(server.health(SERVICES[0]), "SERVING")
            with fails_with(self, Code.UNIMPLEMENTED):
                server.stub.Generate(request())


class Uploading(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--upload-quota-bytes", str(64 << 20), roles="quantization", load=())
        cls.stub = cls.server.quantization

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def create(self, *paths, **fields):
        return self.stub.CreateUpload(pb.CreateUploadRequest(
            kind=pb.Upload.MODEL, files=[announced(p) for p in paths], **fields))

    def test_a_broken_upload_goes_on_at_the_offset_that_is_synced(self):
        weights = MODEL / "model.safetensors"
        paths = [MODEL / "config.json", weights]
        upload = self.create(*paths, resource_id="resumed")
        self.stub.WriteUpload(chunks(upload, paths[0], 0))

        def breaks_off():
            for number, message in enumerate(chunks(upload, weights, 0)):
                if number == 3:
                    raise ConnectionError("the sender is gone")
                yield message

        with self.assertRaises(grpc.RpcError):
            self.stub.WriteUpload(breaks_off())
        # The server may still be writing what arrived.
        def goes_on():
            offset = self.stub.GetUpload(pb.GetUploadRequest(name=upload.name)).files[1].synced_bytes
            self.assertLessEqual(offset, 3 * CHUNK)
            try:
                return self.stub.WriteUpload(chunks(upload, weights, offset))
            except grpc.RpcError as error:
                self.assertIn(error.code(), (Code.ABORTED, Code.OUT_OF_RANGE))
                return None
        self.assertTrue(eventually(goes_on))
        finished = self.stub.FinishUpload(pb.FinishUploadRequest(name=upload.name))
        self.assertEqual(finished.model.name, "models/resumed")
        self.assertEqual([f.sha256 for f in finished.model.files], [announced(p).sha256 for p in paths])

    def test_a_second_writer_is_aborted_and_a_wrong_offset_names_the_expected_one(self):
        config = MODEL / "config.json"
        upload = self.create(config)
        message = next(chunks(upload, config, 0))
        message.data = message.data[:100]
        arrived = []
        def holds_on():
            yield message
            self.assertTrue(eventually(lambda: arrived))
        first = self.stub.WriteUpload.future(holds_on())
        def second_is_aborted():
            try:
                self.stub.WriteUpload(iter([message]))
            except grpc.RpcError as error:
                return error.code() == Code.ABORTED
            return False
        try:
            self.assertTrue(eventually(second_is_aborted))
        finally:
            arrived.append(True)
        self.assertEqual(first.result().files[0].synced_bytes, 100)
        message.offset = 7
        with fails_with(self, Code.OUT_OF_RANGE, "offset", "7", "100"):
            self.stub.WriteUpload(iter([message]))

    def test_a_message_carries_at_most_a_mebibyte(self):
        weights = MODEL / "model.safetensors"
        upload = self.create(MODEL / "config.json", weights)
        message = pb.WriteUploadRequest(name=upload.name, file=weights.name, data=bytes(CHUNK + 1))
        with fails_with(self, Code.INVALID_ARGUMENT, "data", str(CHUNK + 1), str(CHUNK)):
            self.stub.WriteUpload(iter([message]))

    def test_a_quota_bounds_what_a_caller_may_announce(self):
        with fails_with(self, Code.RESOURCE_EXHAUSTED, "quota", str(64 << 20)):
            self.stub.CreateUpload(pb.CreateUploadRequest(
                kind=pb.Upload.MODEL, files=[announced(MODEL / "config.json", size=65 << 20)]))

    def test_no_name_leads_out_of_the_upload(self):
        for name in ("../config.json", "a/config.json", ".config.json", "", "x" * 256):
            file = announced(MODEL / "config.json")
            file.name = name
            with fails_with(self, Code.INVALID_ARGUMENT, "files[0].name"):
                self.stub.CreateUpload(pb.CreateUploadRequest(kind=pb.Upload.MODEL, files=[file]))
        with fails_with(self, Code.INVALID_ARGUMENT, "resource_id"):
            self.create(MODEL / "config.json", resource_id="../x")


class Jobs(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--worker-threads", "1", roles=BOTH, load=())
        cls.stub = cls.server.quantization

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def create(self, artifact, **fields):
        spec = pb.JobSpec(model_path="model", recipe="gptq", scheme="int4-g128",
                          calibration_samples=4, calibration_length=64, evaluation_max_tokens=256,
                          artifact_id=artifact)
        spec.calibration.path = "calibration.jsonl"
        spec.evaluation.path = "heldout.jsonl"
        spec.MergeFrom(pb.JobSpec(**fields))
        return self.stub.CreateJob(pb.CreateJobRequest(spec=spec)).name

    def watch(self, job, on_event=lambda event: None):
        events = []
        for event in self.stub.WatchJob(pb.WatchJobRequest(name=job, after_sequence=0), timeout=600):
            events.append(event)
            on_event(event)
        self.assertEqual(events[-1].kind, pb.JobEvent.STATE_CHANGED)
        self.assertEqual(events[-1].job.state, events[-1].state)
        return events

    def publish(self, artifact, on_event=lambda event: None):
        events = self.watch(self.create(artifact), on_event)
        self.assertEqual(events[-1].state, pb.Job.SUCCEEDED, events[-1].message)
        return events

    def test_workers_give_way_and_end_with_the_server(self):
        with Server("--workers", "2", roles="quantization", load=()) as server:
            self.assertTrue(eventually(lambda: len(children(server.process.pid)) == 2))
            workers = children(server.process.pid)
            def give_way():
                return all(os.getpriority(os.PRIO_PROCESS, pid) > 0 and
                           int(pathlib.Path(f"/proc/{pid}/oom_score_adj").read_text()) == 900
                           for pid in workers)
            self.assertTrue(eventually(give_way))
            server.process.kill()
            gone = lambda: not any(pathlib.Path(f"/proc/{pid}").exists() for pid in workers)
            self.assertTrue(eventually(gone))

    def test_killed_after_every_block_a_job_publishes_what_an_undisturbed_one_does(self):
        digest = self.publish("undisturbed")[-1].job.artifact_digest
        self.stub.DeleteArtifact(pb.DeleteArtifactRequest(name="artifacts/undisturbed"))
        kills = []

        def kill(event):
            if event.kind == pb.JobEvent.BLOCK_DONE:
                workers = children(self.server.process.pid)
                for pid in workers:
                    os.kill(pid, signal.SIGKILL)
                kills.extend(workers)

        events = self.publish("killed", kill)
        self.assertEqual(events[-1].job.artifact_digest, digest)
        blocks = [e.progress.blocks_done for e in events if e.kind == pb.JobEvent.BLOCK_DONE]
        self.assertEqual(sorted(set(blocks)), list(range(1, 9)))
        self.assertLessEqual(len(blocks), 8 + len(kills))
        self.assertGreater(events[-1].job.attempts, 1)
        self.assertLessEqual(events[-1].job.attempts, 1 + len(kills))

        # What was published is what can be fetched, served and read about.
        artifact = self.stub.GetArtifact(pb.GetArtifactRequest(name="artifacts/killed"))
        self.assertEqual((artifact.digest, artifact.scheme, artifact.source),
                         (digest, "int4-g128", "model"))
        self.assertLess(artifact.quality.bits_per_weight, 4.2)
        self.assertGreater(artifact.quality.kl, 0)
        files = {}
        for part in self.stub.DownloadArtifact(pb.DownloadArtifactRequest(name="artifacts/killed")):
            self.assertEqual(part.offset, len(files.setdefault(part.file, b"")))
            files[part.file] += part.data
        self.assertEqual({f.name: f.size_bytes for f in artifact.files},
                         {name: len(data) for name, data in files.items()})
        loaded = self.server.stub.LoadModel(live_server.pb.LoadModelRequest(
            name="killed", source="artifacts/killed")).model
        self.assertEqual(loaded.digest, digest)
        self.assertTrue(self.server.stub.Generate(request(model="killed")).choices[0].text)
        with fails_with(self, Code.FAILED_PRECONDITION, "artifacts/killed"):
            self.stub.DeleteArtifact(pb.DeleteArtifactRequest(name="artifacts/killed"))

    def test_the_disk_that_a_job_needs_is_checked_when_it_is_made(self):
        with tempfile.TemporaryDirectory() as root:
            model = pathlib.Path(root) / "huge"
            model.mkdir()
            (model / "config.json").write_text("{}")
            with open(model / "model.safetensors", "wb") as weights:
                weights.truncate(1 << 43)  # 8 TiB that take no room
            with Server("--workers", "0", roles="quantization", load=(), model_root=root) as server:
                with fails_with(self, Code.RESOURCE_EXHAUSTED, "disk", str(2 * ((1 << 43) + 2))):
                    server.quantization.CreateJob(pb.CreateJobRequest(
                        spec=pb.JobSpec(model_path="huge", recipe="rtn")))

    def test_a_running_job_is_cancelled(self):
        job = self.create("cancelled", calibration_samples=256, calibration_length=128)
        def cancel(event):
            if event.kind == pb.JobEvent.BLOCK_DONE:
                self.stub.CancelJob(pb.CancelJobRequest(name=job))
        events = self.watch(job, cancel)
        self.assertEqual(events[-1].state, pb.Job.CANCELLED)
        self.assertIn(pb.JobEvent.CANCEL_REQUESTED, [e.kind for e in events])
        self.assertLess(len([e for e in events if e.kind == pb.JobEvent.BLOCK_DONE]), 8)


if __name__ == "__main__":
    unittest.main(verbosity=2)
