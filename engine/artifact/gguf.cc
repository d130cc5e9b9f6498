// SPDX-License-Identifier: Apache-2.0
#include "engine/artifact/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <optional>
#include <set>
#include <utility>

#include "engine/base/cat.h"
#include "engine/base/json.h"

namespace nibble {
namespace {

static_assert(std::endian::native == std::endian::little, "files are read in place");

constexpr std::string_view kMagic = "GGUF";
constexpr uint64_t kMaxPairs = 1 << 16;
constexpr uint64_t kMaxTensors = 1 << 20;
constexpr uint64_t kMaxKeyBytes = 65535;
constexpr uint64_t kMaxTensorNameBytes = 1024;
constexpr uint32_t kMaxDimensions = 4;
constexpr int64_t kMaxAlignment = 1 << 16;

constexpr GgmlFormat kFormats[] = {
    {GgmlType::kF32, "F32", 1, 4, DType::kF32},
    {GgmlType::kF16, "F16", 1, 2, DType::kF16},
    {GgmlType::kBF16, "BF16", 1, 2, DType::kBF16},
    {GgmlType::kQ4_0, "Q4_0", 32, 18, DType::kNone},
    {GgmlType::kQ4_1, "Q4_1", 32, 20, DType::kNone},
    {GgmlType::kQ8_0, "Q8_0", 32, 34, DType::kNone},
};

struct UnreadFormat {
  uint32_t id;
  std::string_view name;
};
constexpr UnreadFormat kUnreadFormats[] = {
    {6, "Q5_0"},   {7, "Q5_1"},    {9, "Q8_1"},   {10, "Q2_K"},    {11, "Q3_K"},   {12, "Q4_K"},
    {13, "Q5_K"},  {14, "Q6_K"},   {15, "Q8_K"},  {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"},
    {19, "IQ1_S"}, {20, "IQ4_NL"}, {21, "IQ3_S"}, {22, "IQ2_S"},   {23, "IQ4_XS"}, {24, "I8"},
    {25, "I16"},   {26, "I32"},    {27, "I64"},   {28, "F64"},     {29, "IQ1_M"},  {34, "TQ1_0"},
    {35, "TQ2_0"}, {39, "MXFP4"},  {40, "NVFP4"}, {41, "Q1_0"},    {42, "Q2_0"},
};

// Bytes of one value of a type with a fixed size, 0 for strings and arrays.
constexpr uint64_t SizeOf(GgufType type) {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kI8:
    case GgufType::kBool:
      return 1;
    case GgufType::kU16:
    case GgufType::kI16:
      return 2;
    case GgufType::kU32:
    case GgufType::kI32:
    case GgufType::kF32:
      return 4;
    case GgufType::kU64:
    case GgufType::kI64:
    case GgufType::kF64:
      return 8;
    case GgufType::kString:
    case GgufType::kArray:
      return 0;
  }
  return 0;
}

std::string Quoted(std::string_view text) { return ShownJson(nlohmann::json(std::string(text))); }

// Walks over the header; what does not fit the rest of the file is an error that says where.
class Reader {
 public:
  Reader(std::string_view file, std::string_view label) : file_(file), label_(label) {}

  absl::StatusOr<GgufFile> Read() {
    GgufFile out;
    if (IsGguf(file_)) {
      ReadHeader(out);
    } else {
      Fail("does not begin with GGUF");
    }
    if (!status_.ok()) return status_;
    return out;
  }

 private:
  struct Info {
    GgufTensor tensor;
    uint64_t offset;
  };

  uint64_t Left() const { return file_.size() - position_; }

  // The first error stays.
  void Fail(std::string_view message) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(Cat(label_, ": ", message));
  }

  void ReadHeader(GgufFile& out) {
    position_ = kMagic.size();
    const uint32_t version = Take<uint32_t>("version");
    const uint64_t tensors = Take<uint64_t>("tensor count");
    const uint64_t pairs = Take<uint64_t>("key count");
    // The smallest tensor info has 24 bytes, the smallest pair 13.
    const uint64_t most_tensors = std::min(kMaxTensors, Left() / 24);
    const uint64_t most_pairs = std::min(kMaxPairs, Left() / 13);
    if (version < 2 || version > 3) Fail(Cat("version is ", version, ", must be 2 or 3"));
    if (tensors > most_tensors) {
      Fail(Cat("tensor count is ", tensors, ", must be in 0..", most_tensors));
    }
    if (pairs > most_pairs) Fail(Cat("key count is ", pairs, ", must be in 0..", most_pairs));
    for (uint64_t i = 0; i < pairs && status_.ok(); ++i) ReadPair(out);
    for (uint64_t i = 0; i < tensors && status_.ok(); ++i) ReadTensorInfo();
    if (status_.ok()) PlaceTensors(out);
  }

  template <typename Number>
  Number Take(std::string_view what) {
    Number number{};
    if (!status_.ok()) return number;
    if (Left() < sizeof(number)) {
      Fail(Cat(what, ": the file ends at byte ", file_.size()));
      return number;
    }
    std::memcpy(&number, file_.data() + position_, sizeof(number));
    position_ += sizeof(number);
    return number;
  }

  std::string_view TakeText(std::string_view what, uint64_t most) {
    const uint64_t length = Take<uint64_t>(what);
    if (!status_.ok()) return {};
    if (length > std::min(most, Left())) {
      Fail(Cat(what, ": length is ", length, ", must be in 0..", std::min(most, Left())));
      return {};
    }
    const std::string_view text = file_.substr(position_, length);
    position_ += length;
    return text;
  }

  void ReadPair(GgufFile& out) {
    const std::string key(TakeText("a key", kMaxKeyBytes));
    const std::string where = Cat("key ", Quoted(key));
    GgufValue value;
    value.type = static_cast<GgufType>(Take<uint32_t>(where));
    if (value.type == GgufType::kArray) {
      ReadArray(where, value);
    } else {
      ReadScalar(where, value);
    }
    if (status_.ok() && !out.values.emplace(key, std::move(value)).second) {
      Fail(Cat(where, " comes twice"));
    }
  }

  void ReadScalar(const std::string& where, GgufValue& value) {
    switch (value.type) {
      case GgufType::kU8:
        value.integer = Take<uint8_t>(where);
        break;
      case GgufType::kBool:
        value.integer = Take<uint8_t>(where);
        if (value.integer > 1) Fail(Cat(where, " is ", value.integer, ", must be 0 or 1"));
        break;
      case GgufType::kI8:
        value.integer = Take<int8_t>(where);
        break;
      case GgufType::kU16:
        value.integer = Take<uint16_t>(where);
        break;
      case GgufType::kI16:
        value.integer = Take<int16_t>(where);
        break;
      case GgufType::kU32:
        value.integer = Take<uint32_t>(where);
        break;
      case GgufType::kI32:
        value.integer = Take<int32_t>(where);
        break;
      case GgufType::kU64: {
        const uint64_t number = Take<uint64_t>(where);
        if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
          Fail(Cat(where, " is ", number, ", must be below 2^63"));
          return;
        }
        value.integer = static_cast<int64_t>(number);
        break;
      }
      case GgufType::kI64:
        value.integer = Take<int64_t>(where);
        break;
      case GgufType::kF32:
        value.real = static_cast<double>(Take<float>(where));
        break;
      case GgufType::kF64:
        value.real = Take<double>(where);
        break;
      case GgufType::kString:
        value.text = TakeText(where, Left());
        break;
      default:
        Fail(Cat(where, ": type is ", static_cast<uint32_t>(value.type), ", must be in 0..12"));
    }
  }

  void ReadArray(const std::string& where, GgufValue& value) {
    value.element = static_cast<GgufType>(Take<uint32_t>(where));
    const uint64_t count = Take<uint64_t>(where);
    if (!status_.ok()) return;
    const bool texts = value.element == GgufType::kString;
    const uint64_t size = texts ? 8 : SizeOf(value.element);
    if (size == 0) {
      Fail(Cat(where, ": an array of type ", static_cast<uint32_t>(value.element),
               ", must be of numbers or strings"));
      return;
    }
    if (count > Left() / size) {
      Fail(Cat(where, ": array length is ", count, ", must be in 0..", Left() / size));
      return;
    }
    value.count = static_cast<int64_t>(count);
    if (!texts) {
      value.numbers = file_.substr(position_, count * size);
      position_ += count * size;
      return;
    }
    value.texts.reserve(count);
    for (uint64_t i = 0; i < count && status_.ok(); ++i) {
      value.texts.push_back(TakeText(where, Left()));
    }
  }

  void ReadTensorInfo() {
    Info info;
    info.tensor.name = std::string(TakeText("a tensor name", kMaxTensorNameBytes));
    const std::string where = Cat("tensor ", Quoted(info.tensor.name));
    const uint32_t dimensions = Take<uint32_t>(where);
    if (dimensions > kMaxDimensions) {
      Fail(Cat(where, ": has ", dimensions, " dimensions, at most ", kMaxDimensions));
    }
    for (uint32_t i = 0; i < dimensions && status_.ok(); ++i) {
      const uint64_t extent = Take<uint64_t>(where);
      if (extent < 1 || extent > uint64_t{1} << 40) {
        Fail(Cat(where, ": an extent is ", extent, ", must be in 1..2^40"));
      }
      info.tensor.shape.insert(info.tensor.shape.begin(), static_cast<int64_t>(extent));
    }
    const uint32_t type = Take<uint32_t>(where);
    info.offset = Take<uint64_t>(where);
    if (!status_.ok()) return;
    info.tensor.format = FindGgmlFormat(type);
    if (info.tensor.format == nullptr) {
      std::string known;
      for (const GgmlFormat& format : kFormats)
        known += Cat(known.empty() ? "" : ", ", format.name);
      status_ = absl::UnimplementedError(
          Cat(label_, ": ", where, " is stored as ", GgmlFormatName(type), ", read are ", known));
      return;
    }
    infos_.push_back(std::move(info));
  }

  // Bytes of a tensor, nothing if they do not fit.
  std::optional<uint64_t> BytesOfTensor(const GgufTensor& tensor) {
    const int64_t row = tensor.shape.empty() ? 1 : tensor.shape.back();
    if (row % tensor.format->block != 0) {
      Fail(Cat("tensor ", Quoted(tensor.name), ": rows have ", row, " elements, ",
               tensor.format->name, " needs a multiple of ", tensor.format->block));
      return std::nullopt;
    }
    int64_t bytes = row / tensor.format->block;
    bool fits = !__builtin_mul_overflow(bytes, tensor.format->bytes, &bytes);
    for (size_t i = 0; i + 1 < tensor.shape.size(); ++i) {
      fits = fits && !__builtin_mul_overflow(bytes, tensor.shape[i], &bytes);
    }
    if (!fits) {
      Fail(Cat("tensor ", Quoted(tensor.name), " is larger than 2^63 bytes"));
      return std::nullopt;
    }
    return static_cast<uint64_t>(bytes);
  }

  void PlaceTensors(GgufFile& out) {
    int64_t alignment = 32;
    if (out.Find("general.alignment") != nullptr) {
      absl::StatusOr<int64_t> declared = out.Integer("general.alignment");
      alignment = declared.ok() ? *declared : 0;
      if (alignment < 8 || alignment > kMaxAlignment || alignment % 8 != 0) {
        Fail(Cat("general.alignment must be a multiple of 8 in 8..", kMaxAlignment));
        return;
      }
    }
    const auto step = static_cast<uint64_t>(alignment);
    const uint64_t start = (position_ + step - 1) / step * step;
    if (start > file_.size() && !infos_.empty()) {
      Fail("ends before the data of the tensors");
      return;
    }
    std::sort(infos_.begin(), infos_.end(),
              [](const Info& a, const Info& b) { return a.offset < b.offset; });
    std::set<std::string_view> names;
    uint64_t end = 0;
    for (Info& info : infos_) {
      const std::string where = Cat("tensor ", Quoted(info.tensor.name));
      const std::optional<uint64_t> bytes = BytesOfTensor(info.tensor);
      if (!bytes.has_value()) return;
      if (!names.insert(info.tensor.name).second) {
        Fail(Cat(where, " comes twice"));
        return;
      }
      if (info.offset % step != 0 || info.offset < end) {
        Fail(Cat(where, ": offset is ", info.offset, ", must be a multiple of ", step,
                 " and not below ", end, ", where the tensor before it ends"));
        return;
      }
      const uint64_t available = file_.size() - start;
      if (info.offset > available || *bytes > available - info.offset) {
        Fail(Cat(where, ": its ", *bytes, " bytes at offset ", info.offset, " end outside the ",
                 available, " bytes of data in the file"));
        return;
      }
      info.tensor.bytes = file_.substr(start + info.offset, *bytes);
      end = info.offset + *bytes;
    }
    for (Info& info : infos_) out.tensors.push_back(std::move(info.tensor));
  }

  std::string_view file_;
  std::string_view label_;
  uint64_t position_ = 0;
  absl::Status status_;
  std::vector<Info> infos_;
};

float ReadHalf(const char* bytes) {
  uint16_t bits = 0;
  std::memcpy(&bits, bytes, sizeof(bits));
  return F16ToF32(bits);
}

float PlainElement(GgmlType type, const char* bytes) {
  if (type == GgmlType::kF16) return ReadHalf(bytes);
  if (type == GgmlType::kBF16) {
    uint16_t bits = 0;
    std::memcpy(&bits, bytes, sizeof(bits));
    return BF16ToF32(bits);
  }
  float value = 0;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

absl::Status WrongType(std::string_view key, std::string_view wanted) {
  return absl::InvalidArgumentError(Cat("key ", key, " is missing or no ", wanted));
}

}  // namespace

bool IsGguf(std::string_view file) { return file.substr(0, kMagic.size()) == kMagic; }

const GgmlFormat* FindGgmlFormat(uint32_t id) {
  for (const GgmlFormat& format : kFormats) {
    if (static_cast<uint32_t>(format.type) == id) return &format;
  }
  return nullptr;
}

std::string GgmlFormatName(uint32_t id) {
  if (const GgmlFormat* format = FindGgmlFormat(id)) return std::string(format->name);
  for (const UnreadFormat& format : kUnreadFormats) {
    if (format.id == id) return std::string(format.name);
  }
  return Cat("type ", id);
}

// A block begins with its scale d as f16 (Q4_1: then its minimum m). The nibbles of Q4_0 and Q4_1
// hold element j in the low and element j + 16 in the high half of byte j.
void DequantizeRow(const GgmlFormat& format, const char* blocks, int64_t cols, float* out) {
  for (int64_t k = 0; k < cols; k += format.block, blocks += format.bytes, out += format.block) {
    switch (format.type) {
      case GgmlType::kF32:
      case GgmlType::kF16:
      case GgmlType::kBF16:
        *out = PlainElement(format.type, blocks);
        break;
      case GgmlType::kQ8_0:
        for (int j = 0; j < 32; ++j) {
          out[j] = static_cast<float>(static_cast<signed char>(blocks[2 + j])) * ReadHalf(blocks);
        }
        break;
      case GgmlType::kQ4_0:
        for (int j = 0; j < 16; ++j) {
          const auto byte = static_cast<unsigned char>(blocks[2 + j]);
          out[j] = static_cast<float>((byte & 15) - 8) * ReadHalf(blocks);
          out[j + 16] = static_cast<float>((byte >> 4) - 8) * ReadHalf(blocks);
        }
        break;
      case GgmlType::kQ4_1:
        for (int j = 0; j < 16; ++j) {
          const auto byte = static_cast<unsigned char>(blocks[4 + j]);
          const float minimum = ReadHalf(blocks + 2);
          out[j] = static_cast<float>(byte & 15) * ReadHalf(blocks) + minimum;
          out[j + 16] = static_cast<float>(byte >> 4) * ReadHalf(blocks) + minimum;
        }
        break;
    }
  }
}

const GgufValue* GgufFile::Find(std::string_view key) const {
  const auto found = values.find(key);
  return found == values.end() ? nullptr : &found->second;
}

absl::StatusOr<int64_t> GgufFile::Integer(std::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr || value->type == GgufType::kString || value->type == GgufType::kArray ||
      value->type == GgufType::kF32 || value->type == GgufType::kF64) {
    return WrongType(key, "integer");
  }
  return value->integer;
}

absl::StatusOr<double> GgufFile::Real(std::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr || (value->type != GgufType::kF32 && value->type != GgufType::kF64)) {
    return WrongType(key, "floating-point number");
  }
  return value->real;
}

absl::StatusOr<std::string> GgufFile::Text(std::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr || value->type != GgufType::kString) return WrongType(key, "string");
  return std::string(value->text);
}

absl::StatusOr<GgufFile> ParseGguf(std::string_view file, std::string_view label) {
  return Reader(file, label).Read();
}

}  // namespace nibble
