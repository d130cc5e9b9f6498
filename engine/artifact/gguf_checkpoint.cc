// SPDX-License-Identifier: Apache-2.0
#include "engine/artifact/gguf_checkpoint.h"

#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "engine/artifact/gguf.h"
#include "engine/artifact/gguf_model.h"
#include "engine/artifact/mapped_file.h"
#include "engine/base/cat.h"
#include "engine/base/status.h"
#include "kernels/codec.h"

namespace nibble {
namespace {

constexpr std::string_view kWeight = ".weight";
constexpr std::string_view kRopeFactors = "rope_freqs.weight";  // part of the configuration
constexpr int64_t kMaxExtent = int64_t{1} << 31;

std::string Lower(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  return lower;
}

class GgufCheckpoint final : public Checkpoint {
 public:
  absl::Status Open(const std::string& path) {
    path_ = path;
    absl::StatusOr<std::unique_ptr<MappedFile>> mapped = MappedFile::Open(path);
    if (!mapped.ok()) return mapped.status();
    mapped_ = *std::move(mapped);
    absl::StatusOr<GgufFile> file = ParseGguf(mapped_->bytes(), path);
    if (!file.ok()) return file.status();
    file_ = *std::move(file);
    absl::StatusOr<nlohmann::json> config = GgufConfig(file_);
    if (!config.ok()) return InFile(config.status());
    config_ = *std::move(config);
    for (const GgufTensor& tensor : file_.tensors) {
      if (tensor.name == kRopeFactors) continue;
      const std::optional<std::string> name = HfTensorName(tensor.name);
      if (!name.has_value()) {
        return InFile(absl::UnimplementedError(Cat("tensor ", tensor.name, " is not known")));
      }
      if (absl::Status status = Add(*name, tensor); !status.ok()) return InFile(status);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<WeightView> Weight(std::string_view module) const override {
    const auto found = tensors_.find(Cat(module, kWeight));
    if (found == tensors_.end() || found->second.tensor->shape.size() != 2) {
      return absl::NotFoundError(Cat(path_, ": has no weight of module ", module));
    }
    const Entry& entry = found->second;
    WeightView view;
    view.scheme = entry.plain ? PlainScheme(entry.tensor->format->dtype) : FindScheme("f32");
    view.rows = entry.tensor->shape[0];
    view.cols = entry.tensor->shape[1];
    view.codes = entry.in_place ? static_cast<const void*>(entry.tensor->bytes.data())
                                : Written(found->first, entry);
    return view;
  }

  absl::StatusOr<std::vector<float>> Vector(std::string_view tensor) const override {
    const auto found = tensors_.find(tensor);
    if (found == tensors_.end() || found->second.tensor->shape.size() != 1) {
      return absl::NotFoundError(Cat(path_, ": has no one-dimensional tensor ", tensor));
    }
    const Entry& entry = found->second;
    const int64_t size = entry.tensor->shape[0];
    std::vector<float> stored(static_cast<size_t>(size));
    DequantizeRow(*entry.tensor->format, entry.tensor->bytes.data(), size, stored.data());
    if (entry.heads == 0) return stored;
    std::vector<float> values(stored.size());
    for (int64_t i = 0; i < size; ++i) {
      values[static_cast<size_t>(i)] = stored[static_cast<size_t>(StoredRow(i, size, entry.heads))];
    }
    return values;
  }

  bool HasVector(std::string_view tensor) const override {
    const auto found = tensors_.find(tensor);
    return found != tensors_.end() && found->second.tensor->shape.size() == 1;
  }
  bool HasWeight(std::string_view module) const override {
    const auto found = tensors_.find(Cat(module, kWeight));
    return found != tensors_.end() && found->second.tensor->shape.size() == 2;
  }

  const nlohmann::json& config() const override { return config_; }
  const std::string& path() const override { return path_; }
  std::vector<std::string> files() const override {
    return {std::filesystem::path(path_).filename().string()};
  }

  std::vector<TensorInfo> tensors() const override {
    std::vector<TensorInfo> list;
    list.reserve(file_.tensors.size());
    for (const GgufTensor& tensor : file_.tensors) {
      list.push_back({tensor.name, tensor.format->dtype, tensor.shape,
                      static_cast<int64_t>(tensor.bytes.size()), std::string(tensor.format->name)});
    }
    return list;
  }

  std::vector<ModuleInfo> modules() const override {
    std::vector<ModuleInfo> list;
    for (const auto& [name, entry] : tensors_) {
      if (entry.tensor->shape.size() != 2) continue;
      const std::string scheme = entry.plain
                                     ? std::string(PlainScheme(entry.tensor->format->dtype)->name)
                                     : "gguf-" + Lower(entry.tensor->format->name);
      list.push_back({name.substr(0, name.size() - kWeight.size()), scheme, entry.tensor->shape[0],
                      entry.tensor->shape[1], static_cast<int64_t>(entry.tensor->bytes.size()),
                      !entry.plain});
    }
    return list;
  }

  void Release(std::string_view module) const override {
    const auto found = tensors_.find(Cat(module, kWeight));
    if (found == tensors_.end()) return;
    mapped_->Release(found->second.tensor->bytes);
    const std::lock_guard lock(mutex_);
    written_.erase(found->first);
  }

 private:
  struct Entry {
    const GgufTensor* tensor = nullptr;
    bool plain = false;
    bool in_place = false;
    int64_t heads = 0;  // whose rows are permuted; 0: none are
  };

  absl::Status InFile(const absl::Status& status) const { return Within(path_, status); }

  absl::Status Add(const std::string& name, const GgufTensor& tensor) {
    if (tensor.shape.empty() || tensor.shape.size() > 2) {
      return absl::UnimplementedError(
          Cat("tensor ", tensor.name, " has ", tensor.shape.size(), " dimensions, known are 1, 2"));
    }
    for (const int64_t extent : tensor.shape) {
      if (extent > kMaxExtent) {
        return absl::InvalidArgumentError(
            Cat("tensor ", tensor.name, ": an extent is ", extent, ", must be in 1..2^31"));
      }
    }
    Entry entry;
    entry.tensor = &tensor;
    entry.plain = tensor.format->dtype != DType::kNone;
    entry.heads = PermutedHeads(file_, name);
    // Heads are an even number of rows.
    if (entry.heads < 0 || entry.heads > kMaxExtent ||
        (entry.heads > 0 && tensor.shape[0] % (2 * entry.heads) != 0)) {
      return absl::InvalidArgumentError(Cat("tensor ", tensor.name, " has ", tensor.shape[0],
                                            " rows for ", entry.heads, " heads of even size"));
    }
    const auto address = reinterpret_cast<uintptr_t>(tensor.bytes.data());
    entry.in_place = entry.plain && entry.heads == 0 &&
                     address % static_cast<uintptr_t>(tensor.format->bytes) == 0;
    tensors_.emplace(name, entry);
    return absl::OkStatus();
  }

  // Where the file keeps row `row` of Hugging Face's order: its heads are (half, pair), the file's
  // (pair, half).
  static int64_t StoredRow(int64_t row, int64_t rows, int64_t heads) {
    const int64_t head_rows = rows / heads;
    const int64_t in_head = row % head_rows;
    const int64_t pairs = head_rows / 2;
    return row - in_head + (in_head % pairs) * 2 + in_head / pairs;
  }

  // The weight written out; made on first use and kept until Release.
  const void* Written(const std::string& name, const Entry& entry) const {
    const std::lock_guard lock(mutex_);
    std::unique_ptr<uint64_t[]>& buffer = written_[name];
    if (buffer != nullptr) return buffer.get();
    const int64_t rows = entry.tensor->shape[0];
    const int64_t cols = entry.tensor->shape[1];
    const GgmlFormat& format = *entry.tensor->format;
    const int64_t stored_bytes = cols / format.block * format.bytes;
    const int64_t row_bytes =
        entry.plain ? stored_bytes : cols * static_cast<int64_t>(sizeof(float));
    buffer = std::make_unique<uint64_t[]>(static_cast<size_t>(rows * row_bytes / 8 + 1));
    char* out = reinterpret_cast<char*>(buffer.get());
    for (int64_t row = 0; row < rows; ++row, out += row_bytes) {
      const int64_t from = entry.heads > 0 ? StoredRow(row, rows, entry.heads) : row;
      const char* stored = entry.tensor->bytes.data() + from * stored_bytes;
      if (entry.plain) {
        std::memcpy(out, stored, static_cast<size_t>(row_bytes));
      } else {
        DequantizeRow(format, stored, cols, reinterpret_cast<float*>(out));
      }
    }
    return buffer.get();
  }

  std::string path_;
  std::unique_ptr<MappedFile> mapped_;
  GgufFile file_;
  nlohmann::json config_;
  std::map<std::string, Entry, std::less<>> tensors_;  // by Hugging Face name
  mutable std::mutex mutex_;
  mutable std::map<std::string, std::unique_ptr<uint64_t[]>> written_;  // under mutex_
};

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenGgufCheckpoint(const std::string& path) {
  auto checkpoint = std::make_unique<GgufCheckpoint>();
  if (absl::Status status = checkpoint->Open(path); !status.ok()) return status;
  return checkpoint;
}

}  // namespace nibble
