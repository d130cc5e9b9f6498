// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/cat.h"
#include "engine/tokenizer/template_context.h"

namespace nibble::jinja {
namespace {

constexpr int64_t kMaxRange = 100'000;

// namespace(mapping, name=value ...), dict(mapping, name=value ...)
std::vector<std::pair<std::string, Value>> MembersOf(const CallArgs& call, Context* context) {
  std::vector<std::pair<std::string, Value>> members;
  for (const Value& arg : call.args) {
    if (arg.AsDict() == nullptr) {
      context->Fail(Cat("expected a dictionary, not ", arg.TypeName()));
      return members;
    }
    const auto& entries = arg.AsDict()->entries;
    members.insert(members.end(), entries.begin(), entries.end());
  }
  members.insert(members.end(), call.named.begin(), call.named.end());
  for (const auto& member : members) {
    if (member.second.AsNamespace() != nullptr) {
      context->Fail("a namespace cannot be held by another value");
    }
  }
  context->ChargeBytes(members.size() * 4 * sizeof(Value));
  return members;
}

Value Range(const CallArgs& call, Context* context) {
  if (call.args.empty() || call.args.size() > 3 || !call.named.empty()) {
    context->Fail("range takes one to three integers");
    return Value();
  }
  int64_t numbers[3] = {0, 0, 1};
  for (size_t i = 0; i < call.args.size(); ++i) {
    numbers[call.args.size() == 1 ? 1 : i] = context->Integer(call.args[i], "range");
  }
  const auto [start, stop, step] = numbers;
  if (step == 0) context->Fail("range: the step is 0");
  if (context->failed()) return Value();
  std::vector<Value> items;
  int64_t at = start;
  while (step > 0 ? at < stop : at > stop) {
    if (static_cast<int64_t>(items.size()) == kMaxRange) {
      context->Fail(Cat("range has more than ", kMaxRange, " members"));
      return Value();
    }
    items.push_back(Value::Of(at));
    if (__builtin_add_overflow(at, step, &at)) break;
  }
  return context->Items(std::move(items));
}

Value StrftimeNow(const CallArgs& call, std::optional<int64_t> now, Context* context) {
  if (call.args.size() != 1 || call.args[0].AsString() == nullptr) {
    context->Fail("strftime_now takes one format");
    return Value();
  }
  if (!now.has_value()) {
    context->Fail("strftime_now: the caller gave no time");
    return Value();
  }
  // Only conversions of bounded length.
  const std::string& format = *call.args[0].AsString();
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%') continue;
    if (i + 1 < format.size() && format[i + 1] == '-') ++i;
    static constexpr std::string_view kKnown = "aAbBdeHIjmMpSuwyY%";
    if (i + 1 >= format.size() || kKnown.find(format[i + 1]) == std::string_view::npos) {
      context->Fail("strftime_now: the format has a conversion that is not supported");
      return Value();
    }
    ++i;
  }
  if (format.empty() || format.size() > 256) {
    context->Fail("strftime_now: the format must have 1 to 256 bytes");
    return Value();
  }
  const auto seconds = static_cast<std::time_t>(*now);
  std::tm calendar = {};
  char text[4096];
  if (gmtime_r(&seconds, &calendar) == nullptr) {
    context->Fail("strftime_now: the time is out of range");
    return Value();
  }
  return context->Text(
      std::string(text, std::strftime(text, sizeof(text), format.c_str(), &calendar)));
}

}  // namespace

Value CallFunction(Function function, const CallArgs& call, std::optional<int64_t> now,
                   Context* context) {
  switch (function) {
    case Function::kRange:
      return Range(call, context);
    case Function::kNamespace: {
      auto space = std::make_shared<Namespace>();
      for (const auto& [name, value] : MembersOf(call, context)) {
        // Set looks through all members.
        if (!context->Charge(space->entries.size())) break;
        space->Set(name, value);
      }
      return Value(std::move(space));
    }
    case Function::kDict:
      return context->Entries(MembersOf(call, context));
    case Function::kRaiseException:
      context->Fail(call.args.empty() ? "the template refused its input"
                                      : context->Str(call.args[0]));
      return Value();
    case Function::kStrftimeNow:
      return StrftimeNow(call, now, context);
  }
  return Value();
}

}  // namespace nibble::jinja
