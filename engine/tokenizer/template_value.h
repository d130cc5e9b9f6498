// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "engine/tokenizer/text.h"

namespace nibble::jinja {

struct MacroNode;
struct List;
struct Dict;
struct Namespace;
struct Loop;

// A name or member that is not there: prints as nothing, is false, has no members.
struct Undefined {
  std::string name;
};
struct None {};
enum class Function { kRange, kNamespace, kDict, kRaiseException, kStrftimeNow };

// A value of the template language, with Python's meanings. Strings, lists and dictionaries are
// shared and never change, so values copy cheaply; a namespace is the one thing that can be
// assigned to, and is in no other value, so that nothing is ever its own part.
class Value {
 public:
  using Storage = std::variant<Undefined, None, bool, int64_t, double,
                               std::shared_ptr<const std::string>, std::shared_ptr<const List>,
                               std::shared_ptr<const Dict>, std::shared_ptr<Namespace>,
                               std::shared_ptr<const Loop>, Function, const MacroNode*>;

  Value() : storage_(Undefined{}) {}
  explicit Value(Storage storage) : storage_(std::move(storage)) {}
  static Value Missing(std::string_view name) { return Value(Undefined{std::string(name)}); }
  static Value OfNone() { return Value(None{}); }
  static Value Of(bool b) { return Value(Storage(b)); }
  static Value Of(int64_t i) { return Value(Storage(i)); }
  static Value Of(size_t n) { return Of(static_cast<int64_t>(n)); }
  static Value Of(double d) { return Value(Storage(d)); }
  static Value Of(std::string text) {
    return Value(Storage(std::make_shared<const std::string>(std::move(text))));
  }
  static Value Of(std::string_view text) { return Of(std::string(text)); }
  static Value Of(const char* text) { return Of(std::string(text)); }
  static Value OfList(std::vector<Value> items, bool tuple = false);
  static Value OfDict(std::vector<std::pair<std::string, Value>> entries);

  template <typename T>
  const T* As() const {
    return std::get_if<T>(&storage_);
  }
  bool IsUndefined() const { return As<Undefined>() != nullptr; }
  bool IsNone() const { return As<None>() != nullptr; }
  const std::string* AsString() const {
    const auto* text = As<std::shared_ptr<const std::string>>();
    return text == nullptr ? nullptr : text->get();
  }
  const List* AsList() const {
    const auto* list = As<std::shared_ptr<const List>>();
    return list == nullptr ? nullptr : list->get();
  }
  const Dict* AsDict() const {
    const auto* dict = As<std::shared_ptr<const Dict>>();
    return dict == nullptr ? nullptr : dict->get();
  }
  Namespace* AsNamespace() const {
    const auto* space = As<std::shared_ptr<Namespace>>();
    return space == nullptr ? nullptr : space->get();
  }
  const Loop* AsLoop() const {
    const auto* loop = As<std::shared_ptr<const Loop>>();
    return loop == nullptr ? nullptr : loop->get();
  }
  // Integers and booleans, as Python counts them.
  bool AsInt(int64_t* value) const;
  // Integers, booleans and floats.
  bool AsNumber(double* value) const;

  bool IsTrue() const;
  // What Python calls the type, for error messages.
  std::string TypeName() const;
  // 0 for scalars, one more than the deepest member for lists and dictionaries.
  int Depth() const;
  // About how much work it is to walk through the value: members counted as often as they occur,
  // however they share memory. Saturates at kMaxValueWeight.
  uint64_t Weight() const;

 private:
  Storage storage_;
};

struct List {
  std::vector<Value> items;
  bool tuple = false;
  int depth = 1;
  uint64_t weight = 1;
};

// Keeps the order in which keys were first set.
struct Dict {
  std::vector<std::pair<std::string, Value>> entries;
  TextMap<size_t> index;
  int depth = 1;
  uint64_t weight = 1;

  const Value* Find(std::string_view key) const;
};

struct Namespace {
  std::vector<std::pair<std::string, Value>> entries;

  const Value* Find(std::string_view key) const;
  void Set(std::string_view key, Value value);
};

// The variable `loop` inside a for.
struct Loop {
  std::shared_ptr<const List> items;
  size_t index = 0;
};

constexpr int kMaxValueDepth = 100;
constexpr uint64_t kMaxValueWeight = uint64_t{1} << 32;

// Nested deeper than kMaxValueDepth, or of a kind JSON text cannot have: false.
bool FromJson(const nlohmann::ordered_json& json, int depth, Value* value);

// Python's str() and repr(). Appends; stops growing soon after `limit` bytes.
void AppendStr(const Value& value, size_t limit, std::string* out);
void AppendRepr(const Value& value, size_t limit, std::string* out);

struct JsonStyle {
  bool ensure_ascii = false;
  bool sort_keys = false;
  int indent = -1;  // -1: on one line
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};
// Python's json.dumps. False where the value has no JSON form.
bool AppendJson(const Value& value, const JsonStyle& style, int level, size_t limit,
                std::string* out);

// Python's ==. Never fails: values of different kinds are unequal.
bool Equals(const Value& a, const Value& b);
// Python's <, for numbers, strings and lists of such. False where they have no order.
bool LessThan(const Value& a, const Value& b, bool* less);

}  // namespace nibble::jinja
