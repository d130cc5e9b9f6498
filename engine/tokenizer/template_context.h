// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/tokenizer/template_value.h"

namespace nibble::jinja {

// What one rendering may use up, and its first error. After an error every operation may go on
// with any value; loops and statements look at failed() and stop.
class Context {
 public:
  static constexpr uint64_t kMaxSteps = 10'000'000;
  static constexpr uint64_t kMaxBytes = uint64_t{256} << 20;

  bool failed() const { return !status_.ok(); }
  const absl::Status& status() const { return status_; }

  // INVALID_ARGUMENT with the current line.
  void Fail(std::string_view problem);
  // Both give false, and RESOURCE_EXHAUSTED, once the rendering has used up its share.
  bool Charge(uint64_t steps);
  bool ChargeBytes(uint64_t bytes);

  void set_line(int line) { line_ = line; }

  // Values that have been built: counted, and refused where they nest too deep or weigh too much.
  Value Text(std::string text);
  Value Items(std::vector<Value> items, bool tuple = false);
  Value Entries(std::vector<std::pair<std::string, Value>> entries);

  // str() of any value.
  std::string Str(const Value& value);
  // The members a for loop would see; an error where there are none to see.
  std::vector<Value> Iterate(const Value& value);
  // An integer argument; `what` names it in the error.
  int64_t Integer(const Value& value, std::string_view what);
  bool Equal(const Value& a, const Value& b);
  bool Less(const Value& a, const Value& b);
  // a in b
  bool Contains(const Value& container, const Value& member);
  // value[key]; Undefined where there is none.
  Value Item(const Value& value, const Value& key);
  // value.name; Undefined where there is none.
  Value Member(const Value& value, std::string_view name);

 private:
  Value Checked(Value value);

  absl::Status status_;
  int line_ = 0;
  uint64_t steps_ = 0;
  uint64_t bytes_ = 0;
};

struct CallArgs {
  std::vector<Value> args;
  std::vector<std::pair<std::string, Value>> named;
};

// Arguments by parameter; null where not given.
using Bound = std::array<const Value*, 4>;

// A filter, test or method: a row of a table.
struct Operation {
  std::string_view name;
  std::array<std::string_view, 4> parameters;  // empty behind the last
  Value (*apply)(const Value& input, const Bound& bound, Context* context);
};

// Finds `name` in `table`, binds the arguments and applies it. `kind` ("filter") is for errors.
Value ApplyOperation(absl::Span<const Operation> table, std::string_view kind,
                     std::string_view name, const Value& input, const CallArgs& args,
                     Context* context);

// input | name(args)
Value ApplyFilter(std::string_view name, const Value& input, const CallArgs& args,
                  Context* context);
// input is name(args)
bool ApplyTest(std::string_view name, const Value& input, const CallArgs& args, Context* context);
// receiver.name(args) on strings, lists and dictionaries
Value CallMethod(const Value& receiver, std::string_view name, const CallArgs& args,
                 Context* context);

// The functions that every template knows: range, namespace, dict, raise_exception, strftime_now.
// `now`: seconds since 1970 UTC.
Value CallFunction(Function function, const CallArgs& call, std::optional<int64_t> now,
                   Context* context);
// a op b, where op is one of + - * / // % **: Python's arithmetic, and its + and * of strings and
// lists.
Value Arithmetic(const Value& a, std::string_view op, const Value& b, Context* context);

// Python's case conversions, by Unicode's rules.
std::string Upper(std::string_view text);
std::string Lower(std::string_view text);
std::string Capitalize(std::string_view text);
// str.strip(): without `chars`, white space goes.
std::string_view Strip(std::string_view text, const std::string* chars, bool left, bool right);
// The characters of a text.
std::vector<std::string_view> Characters(std::string_view text);
size_t CharacterCount(std::string_view text);
// str.replace(); `count` below 0 is all.
std::string ReplaceText(std::string_view text, std::string_view from, std::string_view to,
                        int64_t count);

}  // namespace nibble::jinja
