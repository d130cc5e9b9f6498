// SPDX-License-Identifier: Apache-2.0
#include "engine/artifact/hf_checkpoint.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "engine/artifact/mapped_file.h"
#include "engine/artifact/quantization_config.h"
#include "engine/artifact/safetensors.h"
#include "engine/base/cat.h"
#include "engine/base/json.h"
#include "engine/base/status.h"
#include "kernels/codec.h"

namespace nibble {
namespace {

using nlohmann::json;

constexpr std::string_view kPackedSuffix = ".weight_packed";
constexpr std::string_view kPlainSuffix = ".weight";
constexpr int64_t kMaxIndexBytes = int64_t{64} << 20;
constexpr size_t kMaxShards = 4096;
constexpr std::string_view kSingleFile = "model.safetensors";
constexpr std::string_view kIndexFile = "model.safetensors.index.json";
constexpr int64_t kMaxExtent = int64_t{1} << 31;  // rows or columns of a weight

bool Exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

bool IsFloat(DType type) {
  return type == DType::kF32 || type == DType::kF16 || type == DType::kBF16;
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (const int64_t extent : shape) text += Cat(text.size() > 1 ? ", " : "", extent);
  return text + "]";
}

class HfCheckpoint final : public Checkpoint {
 public:
  struct StoredBytes {
    const SafetensorsEntry* entry = nullptr;
    const MappedFile* file = nullptr;
    std::string_view bytes;
    const void* aligned = nullptr;  // `bytes`, or a copy where the file does not align them
  };

  absl::Status Open(const std::string& directory) {
    path_ = directory;
    absl::StatusOr<json> config = ReadJsonObject(Cat(directory, "/config.json"));
    if (!config.ok()) return config.status();
    config_ = *std::move(config);
    absl::StatusOr<std::vector<std::string>> files = HfWeightFiles(directory);
    if (!files.ok()) return files.status();
    files_ = *std::move(files);
    headers_.reserve(files_.size());
    for (const std::string& name : files_) {
      if (absl::Status status = OpenFile(name); !status.ok()) return status;
    }
    if (absl::Status status = CheckIndex(); !status.ok()) return status;
    return ResolveModules();
  }

  absl::StatusOr<WeightView> Weight(std::string_view module) const override {
    const auto found = modules_.find(module);
    if (found == modules_.end()) {
      return absl::NotFoundError(Cat(path_, ": has no weight of module ", module));
    }
    return found->second;
  }

  absl::StatusOr<std::vector<float>> Vector(std::string_view tensor) const override {
    const auto found = tensors_.find(tensor);
    if (found == tensors_.end()) {
      return absl::NotFoundError(Cat(path_, ": has no tensor ", tensor));
    }
    const SafetensorsEntry& entry = *found->second.entry;
    if (entry.shape.size() != 1 || !IsFloat(entry.dtype)) {
      return absl::InvalidArgumentError(
          Cat(path_, ": tensor ", tensor, " is ", SafetensorsName(entry.dtype), " ",
              ShapeText(entry.shape), ", must have one dimension and be F32, F16 or BF16"));
    }
    std::vector<float> values(static_cast<size_t>(entry.shape[0]));
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = LoadFloat(found->second.aligned, entry.dtype, static_cast<int64_t>(i));
    }
    return values;
  }

  bool HasVector(std::string_view tensor) const override {
    const auto found = tensors_.find(tensor);
    return found != tensors_.end() && found->second.entry->shape.size() == 1;
  }
  bool HasWeight(std::string_view module) const override {
    return modules_.find(module) != modules_.end();
  }

  const json& config() const override { return config_; }
  std::vector<std::string> files() const override { return files_; }
  const std::string& path() const override { return path_; }

  std::vector<TensorInfo> tensors() const override {
    std::vector<TensorInfo> list;
    list.reserve(tensors_.size());
    for (const auto& [name, stored] : tensors_) {
      list.push_back({name, stored.entry->dtype, stored.entry->shape,
                      static_cast<int64_t>(stored.bytes.size()),
                      std::string(SafetensorsName(stored.entry->dtype))});
    }
    return list;
  }

  std::vector<ModuleInfo> modules() const override {
    std::vector<ModuleInfo> list;
    list.reserve(modules_.size());
    for (const auto& [name, view] : modules_) {
      list.push_back({name, std::string(view.scheme->name), view.rows, view.cols,
                      StoredTensors(view).bytes(), view.scheme->quantized()});
    }
    return list;
  }

  void Release(std::string_view module) const override {
    const std::string prefix = Cat(module, ".");
    for (auto it = tensors_.lower_bound(prefix);
         it != tensors_.end() && it->first.starts_with(prefix); ++it) {
      it->second.file->Release(it->second.bytes);
    }
  }

 private:
  absl::Status OpenFile(const std::string& name) {
    absl::StatusOr<std::unique_ptr<MappedFile>> file = MappedFile::Open(Cat(path_, "/", name));
    if (!file.ok()) return file.status();
    absl::StatusOr<SafetensorsHeader> header =
        ParseSafetensorsHeader((*file)->bytes(), (*file)->path());
    if (!header.ok()) return header.status();
    mapped_.push_back(*std::move(file));
    headers_.push_back(*std::move(header));
    const MappedFile& mapped = *mapped_.back();
    for (const SafetensorsEntry& entry : headers_.back().tensors) {
      StoredBytes stored;
      stored.entry = &entry;
      stored.file = &mapped;
      stored.bytes =
          mapped.bytes().substr(static_cast<size_t>(headers_.back().data_start + entry.begin),
                                static_cast<size_t>(entry.end - entry.begin));
      stored.aligned = Aligned(stored);
      if (!tensors_.emplace(entry.name, stored).second) {
        return absl::InvalidArgumentError(
            Cat(mapped.path(), ": tensor ", entry.name, " is also in another shard"));
      }
    }
    return absl::OkStatus();
  }

  // Older writers did not align the data; what they left crooked is copied once.
  const void* Aligned(const StoredBytes& stored) {
    const auto address = reinterpret_cast<uintptr_t>(stored.bytes.data());
    if (address % BytesOf(stored.entry->dtype) == 0) return stored.bytes.data();
    copies_.push_back(std::make_unique<uint64_t[]>(stored.bytes.size() / sizeof(uint64_t) + 1));
    std::memcpy(copies_.back().get(), stored.bytes.data(), stored.bytes.size());
    return copies_.back().get();
  }

  // Every tensor that the index promises is in the shard that it names.
  absl::Status CheckIndex() const {
    const std::string path = Cat(path_, "/", kIndexFile);
    if (files_.size() == 1 && files_[0] == kSingleFile) return absl::OkStatus();
    absl::StatusOr<json> index = ReadJsonObject(path, kMaxIndexBytes);
    if (!index.ok()) return index.status();
    for (const auto& [name, shard] : (*index)["weight_map"].items()) {
      const auto found = tensors_.find(name);
      if (found == tensors_.end() ||
          found->second.file->path() != Cat(path_, "/", shard.get_ref<const std::string&>())) {
        return absl::InvalidArgumentError(
            Cat(path, ": weight_map: tensor ", name, " is not in ", ShownJson(shard)));
      }
    }
    return absl::OkStatus();
  }

  absl::Status ResolveModules() {
    QuantizationConfig quantization;
    const auto section = config_.find("quantization_config");
    if (section != config_.end() && !section->is_null()) {
      absl::StatusOr<QuantizationConfig> parsed = QuantizationConfig::Parse(*section);
      if (!parsed.ok()) {
        return Within(Cat(path_, "/config.json"), parsed.status());
      }
      quantization = *std::move(parsed);
    }
    for (const auto& [name, stored] : tensors_) {
      std::string_view module = name;
      if (module.ends_with(kPackedSuffix)) {
        module.remove_suffix(kPackedSuffix.size());
      } else if (module.ends_with(kPlainSuffix) && stored.entry->shape.size() == 2) {
        module.remove_suffix(kPlainSuffix.size());
      } else {
        continue;
      }
      absl::StatusOr<const Scheme*> scheme = quantization.SchemeOf(module);
      if (!scheme.ok()) return scheme.status();
      absl::StatusOr<WeightView> view = ResolveWeight(std::string(module), stored, *scheme);
      if (!view.ok()) return view.status();
      modules_.emplace(module, *view);
    }
    return absl::OkStatus();
  }

  // The view of a module whose codes are `codes`, after every tensor of the scheme was found with
  // the type and shape that StoredTensors() calls for. `scheme` is nullptr for a plain weight.
  absl::StatusOr<WeightView> ResolveWeight(const std::string& module, const StoredBytes& codes,
                                           const Scheme* scheme) const {
    WeightView view;
    view.scheme = scheme != nullptr ? scheme : PlainScheme(codes.entry->dtype);
    if (view.scheme == nullptr || codes.entry->shape.size() != 2) {
      return absl::InvalidArgumentError(Cat(
          path_, ": tensor ", codes.entry->name, " is ", SafetensorsName(codes.entry->dtype), " ",
          ShapeText(codes.entry->shape),
          ", must be F32, F16 or BF16 with two dimensions, or be named in quantization_config"));
    }
    view.rows = codes.entry->shape[0];
    view.cols = codes.entry->shape[1];
    if (view.scheme->container == Container::kPacked) {
      absl::Status status = ReadShape(module, view);
      if (!status.ok()) return status;
    }
    if (view.rows < 1 || view.cols < 1 || view.rows > kMaxExtent || view.cols > kMaxExtent) {
      return absl::InvalidArgumentError(Cat(path_, ": weight of ", module, " has shape [",
                                            view.rows, ", ", view.cols,
                                            "], extents must be in 1..2^31"));
    }
    if (view.scheme->outliers) {
      absl::Status status = ReadOutliers(module, view);
      if (!status.ok()) return status;
    }
    for (const StoredTensor& part : StoredTensors(view)) {
      const std::string name = Cat(module, part.suffix);
      const auto found = tensors_.find(name);
      if (found == tensors_.end()) {
        return absl::InvalidArgumentError(Cat(path_, ": tensor ", name, " is missing, scheme ",
                                              view.scheme->name, " of module ", module,
                                              " stores it"));
      }
      const SafetensorsEntry& entry = *found->second.entry;
      const std::vector<int64_t> shape(part.shape.begin(), part.shape.begin() + part.rank);
      if (entry.dtype != part.dtype || entry.shape != shape) {
        return absl::InvalidArgumentError(
            Cat(path_, ": tensor ", name, " is ", SafetensorsName(entry.dtype), " ",
                ShapeText(entry.shape), ", scheme ", view.scheme->name, " stores ",
                SafetensorsName(part.dtype), " ", ShapeText(shape)));
      }
      view.Set(part.part, found->second.aligned);
    }
    return view;
  }

  // Sets the number of outlier features, after all were found where they can be.
  absl::Status ReadOutliers(const std::string& module, WeightView& view) const {
    const std::string name = Cat(module, ".outlier_features");
    const auto found = tensors_.find(name);
    const int64_t most = std::min(view.cols, kMaxOutlierFeatures);
    if (found == tensors_.end() || found->second.entry->dtype != DType::kI32 ||
        found->second.entry->shape.size() != 1 || found->second.entry->shape[0] > most) {
      return absl::InvalidArgumentError(
          Cat(path_, ": tensor ", name, " is missing or not I32 [n] with n in 0..", most));
    }
    view.outliers = found->second.entry->shape[0];
    const auto* features = static_cast<const int32_t*>(found->second.aligned);
    for (int64_t i = 0; i < view.outliers; ++i) {
      const int64_t least = i == 0 ? 0 : int64_t{features[i - 1]} + 1;
      if (features[i] >= least && features[i] < view.cols) continue;
      return absl::InvalidArgumentError(Cat(path_, ": tensor ", name, "[", i, "] is ", features[i],
                                            ", features must ascend and be in 0..", view.cols - 1));
    }
    return absl::OkStatus();
  }

  absl::Status ReadShape(const std::string& module, WeightView& view) const {
    const std::string name = Cat(module, ".weight_shape");
    const auto found = tensors_.find(name);
    if (found == tensors_.end() || found->second.entry->dtype != DType::kI64 ||
        found->second.entry->shape != std::vector<int64_t>{2}) {
      return absl::InvalidArgumentError(
          Cat(path_, ": tensor ", name, " is missing or not I64 [2]"));
    }
    const auto* extents = static_cast<const int64_t*>(found->second.aligned);
    view.rows = extents[0];
    view.cols = extents[1];
    return absl::OkStatus();
  }

  std::string path_;
  json config_;
  std::vector<std::string> files_;
  std::vector<std::unique_ptr<MappedFile>> mapped_;
  std::vector<SafetensorsHeader> headers_;
  std::vector<std::unique_ptr<uint64_t[]>> copies_;
  std::map<std::string, StoredBytes, std::less<>> tensors_;
  std::map<std::string, WeightView, std::less<>> modules_;
};

}  // namespace

absl::StatusOr<std::vector<std::string>> HfWeightFiles(const std::string& directory) {
  const std::string index_path = Cat(directory, "/", kIndexFile);
  if (!Exists(index_path)) {
    if (Exists(Cat(directory, "/", kSingleFile))) {
      return std::vector<std::string>{std::string(kSingleFile)};
    }
    return absl::NotFoundError(Cat(directory, ": has neither ", kSingleFile, " nor ", kIndexFile));
  }
  absl::StatusOr<json> index = ReadJsonObject(index_path, kMaxIndexBytes);
  if (!index.ok()) return index.status();
  const auto map = index->find("weight_map");
  if (map == index->end() || !map->is_object() || map->empty()) {
    return absl::InvalidArgumentError(
        Cat(index_path, ": weight_map is missing, empty or no object"));
  }
  std::set<std::string> names;
  for (const auto& [tensor, shard] : map->items()) {
    const std::string name = shard.is_string() ? shard.get<std::string>() : "";
    if (name.empty() || name[0] == '.' || name.find('/') != std::string::npos ||
        name.find('\0') != std::string::npos || !name.ends_with(".safetensors")) {
      return absl::InvalidArgumentError(
          Cat(index_path, ": weight_map of ", tensor, " is ", ShownJson(shard),
              ", must be a plain file name that ends in .safetensors"));
    }
    names.insert(name);
    if (names.size() > kMaxShards) {
      return absl::InvalidArgumentError(
          Cat(index_path, ": weight_map names more than ", kMaxShards, " shards"));
    }
  }
  return std::vector<std::string>(names.begin(), names.end());
}

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenHfCheckpoint(const std::string& directory) {
  auto checkpoint = std::make_unique<HfCheckpoint>();
  if (absl::Status status = checkpoint->Open(directory); !status.ok()) return status;
  return checkpoint;
}

}  // namespace nibble
