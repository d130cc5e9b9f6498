// SPDX-License-Identifier: Apache-2.0
#include "engine/tokenizer/template_context.h"

#include <algorithm>

#include "engine/base/cat.h"

namespace nibble::jinja {
namespace {

Value LoopMember(const Loop& loop, std::string_view name) {
  const std::vector<Value>& items = loop.items->items;
  const size_t count = items.size();
  if (name == "index") return Value::Of(loop.index + 1);
  if (name == "index0") return Value::Of(loop.index);
  if (name == "revindex") return Value::Of(count - loop.index);
  if (name == "revindex0") return Value::Of(count - loop.index - 1);
  if (name == "first") return Value::Of(loop.index == 0);
  if (name == "last") return Value::Of(loop.index + 1 == count);
  if (name == "length") return Value::Of(count);
  // Only recursive loops go deeper.
  if (name == "depth") return Value::Of(int64_t{1});
  if (name == "depth0") return Value::Of(int64_t{0});
  if (name == "previtem" && loop.index > 0) return items[loop.index - 1];
  if (name == "nextitem" && loop.index + 1 < count) return items[loop.index + 1];
  return Value::Missing(name);
}

}  // namespace

void Context::Fail(std::string_view problem) {
  if (status_.ok()) {
    status_ = absl::InvalidArgumentError(Cat("chat template line ", line_, ": ", problem));
  }
}

bool Context::Charge(uint64_t steps) {
  steps_ += std::min(steps, kMaxSteps + 1);
  if (steps_ > kMaxSteps && status_.ok()) {
    status_ = absl::ResourceExhaustedError(
        Cat("chat template line ", line_, ": rendering takes more than ", kMaxSteps, " steps"));
  }
  return !failed();
}

bool Context::ChargeBytes(uint64_t bytes) {
  bytes_ += std::min(bytes, kMaxBytes + 1);
  if (bytes_ > kMaxBytes && status_.ok()) {
    status_ = absl::ResourceExhaustedError(Cat("chat template line ", line_,
                                               ": rendering builds more than ", kMaxBytes,
                                               " bytes of values"));
  }
  return Charge(bytes / 16);
}

Value Context::Checked(Value value) {
  if (value.Depth() > kMaxValueDepth) Fail(Cat("a value nests deeper than ", kMaxValueDepth));
  if (value.Weight() >= kMaxValueWeight) Fail("a value has too many members");
  return failed() ? Value() : value;
}

Value Context::Text(std::string text) {
  if (!ChargeBytes(text.size())) return Value();
  return Value::Of(std::move(text));
}

Value Context::Items(std::vector<Value> items, bool tuple) {
  if (!ChargeBytes(items.size() * sizeof(Value))) return Value();
  for (const Value& item : items) {
    // So that nothing can become its own part.
    if (item.AsNamespace() != nullptr) Fail("a list cannot hold a namespace");
  }
  return Checked(Value::OfList(std::move(items), tuple));
}

Value Context::Entries(std::vector<std::pair<std::string, Value>> entries) {
  uint64_t bytes = 0;
  for (const auto& [key, value] : entries) {
    bytes += key.size() + 4 * sizeof(Value);
    if (value.AsNamespace() != nullptr) Fail("a dictionary cannot hold a namespace");
  }
  if (!ChargeBytes(bytes)) return Value();
  return Checked(Value::OfDict(std::move(entries)));
}

std::string Context::Str(const Value& value) {
  std::string text;
  if (!Charge(value.Weight())) return text;
  AppendStr(value, kMaxBytes, &text);
  ChargeBytes(text.size());
  return text;
}

std::vector<Value> Context::Iterate(const Value& value) {
  std::vector<Value> items;
  if (const List* list = value.AsList()) {
    if (ChargeBytes(list->items.size() * sizeof(Value))) items = list->items;
  } else if (const Dict* dict = value.AsDict()) {
    if (!ChargeBytes(dict->entries.size() * 4 * sizeof(Value))) return items;
    for (const auto& entry : dict->entries) items.push_back(Value::Of(entry.first));
  } else if (const std::string* text = value.AsString()) {
    if (!ChargeBytes(text->size() * 4 * sizeof(Value))) return items;
    for (const std::string_view c : Characters(*text)) items.push_back(Value::Of(c));
  } else if (!value.IsUndefined()) {
    Fail(Cat("a value of type ", value.TypeName(), " cannot be iterated over"));
  }
  return items;
}

int64_t Context::Integer(const Value& value, std::string_view what) {
  int64_t number = 0;
  if (!value.AsInt(&number)) {
    Fail(Cat(what, " must be an integer, not ", value.TypeName()));
  }
  return number;
}

bool Context::Equal(const Value& a, const Value& b) {
  return Charge(std::min(a.Weight(), b.Weight())) && Equals(a, b);
}

bool Context::Less(const Value& a, const Value& b) {
  bool less = false;
  if (!Charge(std::min(a.Weight(), b.Weight()))) return false;
  if (!LessThan(a, b, &less)) {
    Fail(Cat("values of type ", a.TypeName(), " and ", b.TypeName(), " have no order"));
  }
  return less;
}

bool Context::Contains(const Value& container, const Value& member) {
  if (const std::string* text = container.AsString()) {
    const std::string* part = member.AsString();
    if (part == nullptr) {
      Fail(Cat("'in' a string needs a string, not ", member.TypeName()));
      return false;
    }
    return Charge(text->size() / 16 + 1) && text->find(*part) != std::string::npos;
  }
  if (const Dict* dict = container.AsDict()) {
    const std::string* key = member.AsString();
    return key != nullptr && dict->Find(*key) != nullptr;
  }
  if (const List* list = container.AsList()) {
    return std::any_of(list->items.begin(), list->items.end(),
                       [&](const Value& item) { return !failed() && Equal(item, member); });
  }
  if (!container.IsUndefined()) {
    Fail(Cat("'in' needs a string, list or dictionary, not ", container.TypeName()));
  }
  return false;
}

Value Context::Item(const Value& value, const Value& key) {
  if (const Undefined* undefined = value.As<Undefined>()) {
    Fail(Cat("'", undefined->name, "' is undefined"));
    return Value();
  }
  if (const std::string* name = key.AsString()) return Member(value, *name);
  int64_t index = 0;
  if (!key.AsInt(&index)) return Value::Missing("element");
  if (const List* list = value.AsList()) {
    const auto size = static_cast<int64_t>(list->items.size());
    if (index < 0) index += size;
    if (index < 0 || index >= size) return Value::Missing("element");
    return list->items[static_cast<size_t>(index)];
  }
  if (const std::string* text = value.AsString()) {
    Charge(text->size() / 16 + 1);
    const std::vector<std::string_view> characters = Characters(*text);
    const auto size = static_cast<int64_t>(characters.size());
    if (index < 0) index += size;
    if (index < 0 || index >= size) return Value::Missing("character");
    return Value::Of(characters[static_cast<size_t>(index)]);
  }
  return Value::Missing("element");
}

Value Context::Member(const Value& value, std::string_view name) {
  if (const Undefined* undefined = value.As<Undefined>()) {
    Fail(Cat("'", undefined->name, "' is undefined"));
    return Value();
  }
  const Value* found = nullptr;
  if (const Dict* dict = value.AsDict()) found = dict->Find(name);
  if (const Namespace* space = value.AsNamespace()) {
    if (!Charge(space->entries.size())) return Value();
    found = space->Find(name);
  }
  if (const Loop* loop = value.AsLoop()) return LoopMember(*loop, name);
  return found == nullptr ? Value::Missing(name) : *found;
}

Value ApplyOperation(absl::Span<const Operation> table, std::string_view kind,
                     std::string_view name, const Value& input, const CallArgs& args,
                     Context* context) {
  const auto* row = std::find_if(table.begin(), table.end(),
                                 [name](const Operation& op) { return op.name == name; });
  if (row == table.end()) {
    context->Fail(Cat(kind, " '", name.substr(0, 40), "' is not supported"));
    return Value();
  }
  Bound bound = {};
  if (args.args.size() > bound.size() ||
      (!args.args.empty() && row->parameters[args.args.size() - 1].empty())) {
    context->Fail(Cat(kind, " '", name, "' takes fewer than ", args.args.size(), " arguments"));
    return Value();
  }
  for (size_t i = 0; i < args.args.size(); ++i) bound[i] = &args.args[i];
  for (const auto& [key, value] : args.named) {
    const auto parameter = std::find(row->parameters.begin(), row->parameters.end(), key);
    const auto index = static_cast<size_t>(parameter - row->parameters.begin());
    if (key.empty() || parameter == row->parameters.end() || bound[index] != nullptr) {
      context->Fail(Cat(kind, " '", name, "' takes no argument '", key.substr(0, 40), "' here"));
      return Value();
    }
    bound[index] = &value;
  }
  return row->apply(input, bound, context);
}

}  // namespace nibble::jinja
