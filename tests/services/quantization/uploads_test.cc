// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/uploads.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "engine/artifact/sha256.h"
#include "kernels/check.h"
#include "services/quantization/source_files.h"
#include "services/quantization/sqlite_job_store.h"
#include "services/quantization/sqlite_resource_store.h"
#include "services/quantization/store_schema.h"
#include "services/quantization/sweeper.h"
#include "tests/services/quantization/fake_clock.h"
#include "tests/support/fault_fs.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class UploadsTest : public ::testing::Test {
 protected:
  UploadsTest() {
    NIBBLE_CHECK(layout_.Create(PosixFileSystem()).ok());
    absl::StatusOr<std::unique_ptr<SqliteDatabase>> database =
        OpenStoreDatabase(layout_.Database());
    NIBBLE_CHECK(database.ok());
    database_ = *std::move(database);
    store_ = MakeSqliteResourceStore(*database_, clock_);
    Restart(PosixFileSystem());
  }

  void Restart(FileSystem& fs) {
    uploads_ = std::make_unique<Uploads>(*store_, fs, layout_, limits_, clock_,
                                         [this](size_t bytes) { received_ += bytes; });
  }

  static FileRecord File(const std::string& name, const std::string& bytes) {
    return {name, static_cast<int64_t>(bytes.size()), Sha256Hex(bytes), 0};
  }
  UploadRecord Model(const std::string& id, std::vector<FileRecord> files) {
    UploadRecord record;
    record.tenant = "lab";
    record.creator = "alice";
    record.kind = ResourceKind::kModel;
    record.resource = "models/" + id;
    record.files = std::move(files);
    return record;
  }
  std::string Begin(const std::string& id, std::vector<FileRecord> files) {
    const absl::StatusOr<UploadRecord> upload = uploads_->Create(Model(id, std::move(files)));
    EXPECT_TRUE(upload.ok()) << upload.status();
    return upload.ok() ? upload->id : "";
  }
  int64_t Synced(const std::string& id, size_t file = 0) {
    return store_->GetUpload(id)->files[file].synced_bytes;
  }
  absl::Status Sweep() {
    LeaseOptions options;
    const auto jobs = MakeSqliteJobStore(*database_, clock_, options);
    return nibble::Sweep(*jobs, *store_, PosixFileSystem(), layout_, clock_);
  }

  TempDir directory_;
  const DataLayout layout_{directory_.path()};
  FakeClock clock_;
  UploadLimits limits_;
  size_t received_ = 0;
  std::unique_ptr<SqliteDatabase> database_;
  std::unique_ptr<ResourceStore> store_;
  std::unique_ptr<Uploads> uploads_;
};

TEST_F(UploadsTest, FilesBecomeAModel) {
  const FileRecord config = File("config.json", "{}"),
                   weights = File("model.safetensors", "abcdef");
  const std::string id = Begin("m", {weights, config});
  {
    const auto writer = *uploads_->OpenWriter(id);
    ASSERT_TRUE(writer->Write("config.json", 0, "{}").ok());
    ASSERT_TRUE(writer->Write("model.safetensors", 0, "abc").ok());
    ASSERT_TRUE(writer->Write("model.safetensors", 3, "def").ok());
    ASSERT_TRUE(writer->Close().ok());
  }
  EXPECT_TRUE(absl::IsNotFound(store_->GetResource("models/m").status())) << "not before the end";
  const absl::StatusOr<ResourceRecord> model = uploads_->Finish(id);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->name, "models/m");
  EXPECT_EQ(model->digest, FilesDigest({config, weights})) << "whatever the order of the files";
  EXPECT_EQ(ReadFile(layout_.Source(model->directory) + "/model.safetensors"), "abcdef");
  EXPECT_EQ(uploads_->Finish(id)->name, "models/m") << "again";
  EXPECT_EQ(received_, 8u);
}

TEST_F(UploadsTest, ABrokenUploadGoesOnWhereItWas) {
  limits_.sync_every = 4;
  Restart(PosixFileSystem());
  const std::string id = Begin("m", {File("config.json", "0123456789")});
  {
    const auto writer = *uploads_->OpenWriter(id);
    ASSERT_TRUE(writer->Write("config.json", 0, "0123").ok());
    EXPECT_EQ(Synced(id), 4);
    ASSERT_TRUE(writer->Write("config.json", 4, "45").ok());
    EXPECT_EQ(Synced(id), 4) << "written, not synced";
  }
  EXPECT_EQ(Synced(id), 6) << "what came over the broken stream is kept";
  const auto writer = *uploads_->OpenWriter(id);
  const absl::Status wrong = writer->Write("config.json", 0, "0123");
  EXPECT_TRUE(absl::IsOutOfRange(wrong));
  EXPECT_THAT(std::string(wrong.message()), HasSubstr("expected offset 6"));
  ASSERT_TRUE(writer->Write("config.json", 6, "6789").ok());
  ASSERT_TRUE(writer->Close().ok());
  EXPECT_TRUE(uploads_->Finish(id).ok());
}

TEST_F(UploadsTest, AfterAPowerCutItGoesOnAtWhatWasSynced) {
  limits_.sync_every = 4;
  FaultFileSystem fs(layout_.root);
  Restart(fs);
  const std::string id = Begin("m", {File("config.json", "0123456789")});
  auto writer = *uploads_->OpenWriter(id);
  ASSERT_TRUE(writer->Write("config.json", 0, "01234").ok());
  ASSERT_TRUE(writer->Write("config.json", 5, "67").ok() || true);
  fs.Crash();
  writer.reset();
  ASSERT_EQ(Synced(id), 5);
  writer = *uploads_->OpenWriter(id);
  ASSERT_TRUE(writer->Write("config.json", 5, "56789").ok());
  ASSERT_TRUE(writer->Close().ok());
  const absl::StatusOr<ResourceRecord> model = uploads_->Finish(id);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(ReadFile(layout_.Source(model->directory) + "/config.json"), "0123456789");
}

TEST_F(UploadsTest, OneWriterAtATime) {
  const std::string id = Begin("m", {File("config.json", "{}")});
  const auto writer = *uploads_->OpenWriter(id);
  EXPECT_TRUE(absl::IsAborted(uploads_->OpenWriter(id).status()));
  EXPECT_TRUE(absl::IsAborted(uploads_->Finish(id).status()));
  EXPECT_TRUE(absl::IsAborted(uploads_->Delete(id)));
  ASSERT_TRUE(writer->Close().ok());
  EXPECT_TRUE(uploads_->OpenWriter(id).ok());
}

TEST_F(UploadsTest, WrongBytesAreNoticedAndSentAgain) {
  const std::string id = Begin("m", {File("config.json", "right")});
  {
    const auto writer = *uploads_->OpenWriter(id);
    ASSERT_TRUE(writer->Write("config.json", 0, "wrong").ok());
  }
  const absl::Status status = uploads_->Finish(id).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("config.json"));
  EXPECT_EQ(Synced(id), 0);
  {
    const auto writer = *uploads_->OpenWriter(id);
    ASSERT_TRUE(writer->Write("config.json", 0, "right").ok());
  }
  EXPECT_TRUE(uploads_->Finish(id).ok());
}

TEST_F(UploadsTest, AnIncompleteUploadIsNotFinished) {
  const std::string id = Begin("m", {File("config.json", "{}"), File("empty", "")});
  EXPECT_TRUE(absl::IsFailedPrecondition(uploads_->Finish(id).status()));
  {
    const auto writer = *uploads_->OpenWriter(id);
    ASSERT_TRUE(writer->Write("config.json", 0, "{}").ok());
  }
  EXPECT_TRUE(uploads_->Finish(id).ok()) << "an empty file needs no bytes";
}

TEST_F(UploadsTest, MoreThanAnnouncedIsRefused) {
  const std::string id = Begin("m", {File("config.json", "{}")});
  const auto writer = *uploads_->OpenWriter(id);
  EXPECT_TRUE(absl::IsInvalidArgument(writer->Write("config.json", 0, "{}}")));
  EXPECT_TRUE(absl::IsInvalidArgument(writer->Write("other.json", 0, "{}")));
  EXPECT_TRUE(absl::IsInvalidArgument(
      writer->Write("config.json", 0, std::string(limits_.max_chunk + 1, 'x'))));
}

TEST_F(UploadsTest, AFullDiskIsAStatus) {
  FaultFileSystem fs(layout_.root);
  Restart(fs);
  const std::string id = Begin("m", {File("config.json", "0123")});
  const auto writer = *uploads_->OpenWriter(id);
  fs.Fail(fs.operations() + 1, absl::ResourceExhaustedError("no space left"));
  EXPECT_TRUE(absl::IsResourceExhausted(writer->Write("config.json", 0, "0123")));
}

TEST_F(UploadsTest, QuotasAreKept) {
  limits_.quota.bytes = 10;
  limits_.quota.uploads = 2;
  Restart(PosixFileSystem());
  Begin("a", {File("config.json", "012345")});
  EXPECT_TRUE(absl::IsResourceExhausted(
      uploads_->Create(Model("b", {File("config.json", "01234")})).status()));
  Begin("b", {File("config.json", "0123")});
  EXPECT_TRUE(
      absl::IsResourceExhausted(uploads_->Create(Model("c", {File("config.json", "")})).status()));
  UploadRecord other = Model("c", {File("config.json", "0123")});
  other.creator = "somebody else";
  EXPECT_TRUE(uploads_->Create(other).ok()) << "of one caller";
  other = Model("d", {File("config.json", "0123")});
  other.tenant = "elsewhere";
  EXPECT_TRUE(uploads_->Create(other).ok()) << "of one tenant's caller";
}

TEST_F(UploadsTest, ANameIsTakenByAModelAndByAnUnfinishedUpload) {
  const std::string id = Begin("m", {File("config.json", "")});
  EXPECT_TRUE(
      absl::IsAlreadyExists(uploads_->Create(Model("m", {File("config.json", "")})).status()));
  ASSERT_TRUE(uploads_->Finish(id).ok());
  EXPECT_TRUE(
      absl::IsAlreadyExists(uploads_->Create(Model("m", {File("config.json", "")})).status()));
  ASSERT_TRUE(store_->DeleteResource("models/m").ok());
  EXPECT_TRUE(uploads_->Create(Model("m", {File("config.json", "")})).ok());
}

TEST_F(UploadsTest, UnfinishedUploadsExpireAndFinishedModelsStay) {
  const std::string left = Begin("left", {File("config.json", "{}")});
  const std::string done = Begin("done", {File("config.json", "")});
  const std::string directory = uploads_->Finish(done)->directory;
  clock_.Advance(absl::Hours(23));
  ASSERT_TRUE(Sweep().ok());
  EXPECT_TRUE(store_->GetUpload(left).ok());
  {
    const auto writer = *uploads_->OpenWriter(left);
    ASSERT_TRUE(writer->Write("config.json", 0, "{").ok());
  }
  clock_.Advance(absl::Hours(2));
  ASSERT_TRUE(Sweep().ok());
  EXPECT_TRUE(store_->GetUpload(left).ok()) << "a byte was synced since";
  clock_.Advance(absl::Hours(23));
  ASSERT_TRUE(Sweep().ok());
  EXPECT_TRUE(absl::IsNotFound(store_->GetUpload(left).status()));
  EXPECT_THAT(*PosixFileSystem().List(layout_.Sources()), ElementsAre(directory));
}

TEST_F(UploadsTest, ADeletedUploadLeavesNothing) {
  const std::string id = Begin("m", {File("config.json", "{}")});
  ASSERT_TRUE(uploads_->Delete(id).ok());
  EXPECT_THAT(*PosixFileSystem().List(layout_.Sources()), IsEmpty());
  EXPECT_TRUE(absl::IsNotFound(uploads_->OpenWriter(id).status()));
}

TEST_F(UploadsTest, OnlyPlainFileNamesAreTaken) {
  for (const char* good : {"config.json", "model-00001-of-00002.safetensors", "a", "A b+c=d@e,f"}) {
    EXPECT_TRUE(CheckFileName("name", good).ok()) << good;
  }
  for (const std::string& bad :
       {std::string(), std::string("."), std::string(".."), std::string(".hidden"),
        std::string("a/b"), std::string("../a"), std::string("/etc/passwd"), std::string("a\\b"),
        std::string("a\0b", 3), std::string("a\nb"), std::string(" a"), std::string("a:b"),
        std::string("\xc3\xa9"), std::string(256, 'a')}) {
    const absl::Status status = CheckFileName("files[0].name", bad);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << bad;
    EXPECT_THAT(std::string(status.message()), HasSubstr("files[0].name"));
  }
}

TEST_F(UploadsTest, AnAnnouncementIsChecked) {
  const auto refused = [this](std::vector<FileRecord> files) {
    return absl::IsInvalidArgument(uploads_->Create(Model("m", std::move(files))).status());
  };
  FileRecord file = File("config.json", "{}");
  EXPECT_TRUE(refused({})) << "no files";
  EXPECT_TRUE(refused({file, file})) << "the same name twice";
  EXPECT_TRUE(refused({File("readme.txt", "")})) << "not a model";
  file.bytes = -1;
  EXPECT_TRUE(refused({file}));
  file = File("config.json", "{}");
  file.sha256[0] = 'X';
  EXPECT_TRUE(refused({file}));
  UploadRecord text = Model("t", {File("a.txt", ""), File("b.txt", "")});
  text.kind = ResourceKind::kCalibrationSet;
  EXPECT_TRUE(absl::IsInvalidArgument(uploads_->Create(text).status())) << "a set is one file";
}

TEST(SourcePathTest, PathsStayBeneathTheRoot) {
  for (const char* good : {"model", "a/b/c.gguf", "with space/..x"}) {
    EXPECT_TRUE(CheckRelativePath("path", good).ok()) << good;
  }
  for (const char* bad : {"", "/", "/etc/passwd", "..", "a/../b", "a//b", "./a", "a/.", "a/"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(CheckRelativePath("path", bad))) << bad;
  }
  TempDir root;
  WriteFile(root.File("a.gguf"), "x");
  EXPECT_TRUE(OpenSource::Open(root.path(), "a.gguf").ok());
  EXPECT_TRUE(absl::IsNotFound(OpenSource::Open(root.path(), "b.gguf").status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(OpenSource::Open("", "a.gguf").status()));
}

}  // namespace
}  // namespace nibble
