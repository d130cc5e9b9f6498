// SPDX-License-Identifier: Apache-2.0
//
// The methods of templates' strings and dictionaries: Python's, without those that change their
// object.

#include <algorithm>

#include "engine/base/cat.h"
#include "engine/tokenizer/template_context.h"
#include "engine/tokenizer/utf8.h"

namespace nibble::jinja {
namespace {

const std::string& Self(const Value& value) { return *value.AsString(); }

// A string argument, or an error.
std::string_view TextArgument(const Value* value, Context* context) {
  if (value == nullptr || value->AsString() == nullptr) {
    context->Fail(
        Cat("this method needs a string, not ", value == nullptr ? "nothing" : value->TypeName()));
    return "";
  }
  return *value->AsString();
}

Value StripWith(const Value& self, const Bound& bound, Context* context, bool left, bool right) {
  const bool given = bound[0] != nullptr && !bound[0]->IsNone();
  const std::string chars = given ? std::string(TextArgument(bound[0], context)) : "";
  return context->Text(std::string(Strip(Self(self), given ? &chars : nullptr, left, right)));
}
Value StripBoth(const Value& s, const Bound& b, Context* c) {
  return StripWith(s, b, c, true, true);
}
Value StripLeft(const Value& s, const Bound& b, Context* c) {
  return StripWith(s, b, c, true, false);
}
Value StripRight(const Value& s, const Bound& b, Context* c) {
  return StripWith(s, b, c, false, true);
}

// str.split: without separator at runs of white space, leaving out what is empty.
Value SplitText(const Value& self, const Bound& bound, Context* context, bool from_right) {
  const std::string_view text = Self(self);
  const int64_t limit = bound[1] == nullptr ? -1 : context->Integer(*bound[1], "maxsplit");
  std::vector<std::string_view> parts;
  const auto full = [&] { return limit >= 0 && static_cast<int64_t>(parts.size()) >= limit; };
  context->Charge(text.size() / 8);
  if (bound[0] == nullptr || bound[0]->IsNone()) {
    std::string_view rest = Strip(text, nullptr, true, true);
    while (!rest.empty() && !full()) {
      size_t end = 0;
      while (end < rest.size() &&
             !Strip(rest.substr(end, DecodeUtf8(rest, end).size), nullptr, true, false).empty()) {
        end += DecodeUtf8(rest, end).size;
      }
      parts.push_back(rest.substr(0, end));
      rest = Strip(rest.substr(end), nullptr, true, false);
    }
    if (from_right && limit >= 0) context->Fail("rsplit with maxsplit needs a separator");
    if (!rest.empty()) parts.push_back(rest);
  } else {
    const std::string_view separator = TextArgument(bound[0], context);
    if (separator.empty()) {
      context->Fail("a separator is empty");
      return Value();
    }
    std::string_view rest = text;
    while (!full()) {
      const size_t at = from_right ? rest.rfind(separator) : rest.find(separator);
      if (at == std::string_view::npos) break;
      const std::string_view before = rest.substr(0, at);
      const std::string_view after = rest.substr(at + separator.size());
      parts.push_back(from_right ? after : before);
      rest = from_right ? before : after;
    }
    parts.push_back(rest);
    if (from_right) std::reverse(parts.begin(), parts.end());
  }
  std::vector<Value> items;
  if (!context->ChargeBytes(text.size() + parts.size() * 4 * sizeof(Value))) return Value();
  for (const std::string_view part : parts) items.push_back(Value::Of(part));
  return context->Items(std::move(items));
}
Value Split(const Value& s, const Bound& b, Context* c) { return SplitText(s, b, c, false); }
Value SplitFromRight(const Value& s, const Bound& b, Context* c) {
  return SplitText(s, b, c, true);
}

Value SplitLines(const Value& self, const Bound& bound, Context* context) {
  const std::string_view text = Self(self);
  const bool keep = bound[0] != nullptr && bound[0]->IsTrue();
  std::vector<Value> items;
  if (!context->ChargeBytes(text.size() * 8)) return Value();
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find_first_of("\n\r", begin), text.size());
    size_t next = std::min(end + 1, text.size());
    if (text.substr(end, 2) == "\r\n") next = end + 2;
    items.push_back(Value::Of(text.substr(begin, (keep ? next : end) - begin)));
    begin = next;
  }
  return context->Items(std::move(items));
}

// startswith and endswith take one text or several.
template <typename Predicate>
Value AnyOf(const Bound& bound, Context* context, Predicate predicate) {
  if (bound[0] != nullptr && bound[0]->AsList() != nullptr) {
    const auto& items = bound[0]->AsList()->items;
    return Value::Of(std::any_of(items.begin(), items.end(), [&](const Value& item) {
      return predicate(TextArgument(&item, context));
    }));
  }
  return Value::Of(static_cast<bool>(predicate(TextArgument(bound[0], context))));
}
Value StartsWith(const Value& self, const Bound& bound, Context* context) {
  return AnyOf(bound, context, [&](std::string_view t) { return Self(self).starts_with(t); });
}
Value EndsWith(const Value& self, const Bound& bound, Context* context) {
  return AnyOf(bound, context, [&](std::string_view t) { return Self(self).ends_with(t); });
}

Value Replace(const Value& self, const Bound& bound, Context* context) {
  const std::string_view from = TextArgument(bound[0], context);
  const std::string_view to = TextArgument(bound[1], context);
  const int64_t count = bound[2] == nullptr ? -1 : context->Integer(*bound[2], "count");
  const uint64_t growth = from.empty() ? to.size() + 1 : to.size() / from.size() + 1;
  if (!context->ChargeBytes(Self(self).size() * std::min<uint64_t>(growth, Context::kMaxBytes))) {
    return Value();
  }
  return Value::Of(ReplaceText(Self(self), from, to, count));
}

Value FindIn(const Value& self, const Bound& bound, Context* context, bool from_right) {
  const std::string_view text = Self(self);
  const std::string_view part = TextArgument(bound[0], context);
  context->Charge(text.size() / 16);
  const size_t at = from_right ? text.rfind(part) : text.find(part);
  if (at == std::string_view::npos) return Value::Of(int64_t{-1});
  return Value::Of(CharacterCount(text.substr(0, at)));
}
Value Find(const Value& s, const Bound& b, Context* c) { return FindIn(s, b, c, false); }
Value FindFromRight(const Value& s, const Bound& b, Context* c) { return FindIn(s, b, c, true); }

Value Count(const Value& self, const Bound& bound, Context* context) {
  const std::string_view text = Self(self);
  const std::string_view part = TextArgument(bound[0], context);
  context->Charge(text.size() / 8);
  if (part.empty()) return Value::Of(CharacterCount(text) + 1);
  int64_t count = 0;
  for (size_t at = text.find(part); at != std::string_view::npos;
       at = text.find(part, at + part.size())) {
    ++count;
  }
  return Value::Of(count);
}

Value Join(const Value& self, const Bound& bound, Context* context) {
  if (bound[0] == nullptr) {
    context->Fail("join needs a list");
    return Value();
  }
  std::string out;
  bool first = true;
  for (const Value& item : context->Iterate(*bound[0])) {
    if (!first) out += Self(self);
    first = false;
    out += TextArgument(&item, context);
    if (!context->ChargeBytes(Self(self).size() + 16)) return Value();
  }
  return context->Text(std::move(out));
}

Value ToUpper(const Value& s, const Bound&, Context* c) { return c->Text(Upper(Self(s))); }
Value ToLower(const Value& s, const Bound&, Context* c) { return c->Text(Lower(Self(s))); }
Value ToCapitalized(const Value& s, const Bound&, Context* c) {
  return c->Text(Capitalize(Self(s)));
}
Value ToTitle(const Value& s, const Bound&, Context* c) {
  return ApplyFilter("title", s, CallArgs(), c);
}
Value IsDigits(const Value& s, const Bound&, Context*) {
  const std::string& text = Self(s);
  return Value::Of(!text.empty() && std::all_of(text.begin(), text.end(),
                                                [](char c) { return c >= '0' && c <= '9'; }));
}
Value RemovePrefix(const Value& s, const Bound& b, Context* c) {
  const std::string_view prefix = TextArgument(b[0], c);
  return c->Text(Self(s).starts_with(prefix) ? Self(s).substr(prefix.size()) : Self(s));
}
Value RemoveSuffix(const Value& s, const Bound& b, Context* c) {
  const std::string_view suffix = TextArgument(b[0], c);
  return c->Text(Self(s).ends_with(suffix) ? Self(s).substr(0, Self(s).size() - suffix.size())
                                           : Self(s));
}

Value DictGet(const Value& self, const Bound& bound, Context*) {
  const std::string* key = bound[0] == nullptr ? nullptr : bound[0]->AsString();
  const Value* found = key == nullptr ? nullptr : self.AsDict()->Find(*key);
  if (found != nullptr) return *found;
  return bound[1] == nullptr ? Value::OfNone() : *bound[1];
}
Value DictKeys(const Value& self, const Bound&, Context* context) {
  return context->Items(context->Iterate(self));
}
Value DictValues(const Value& self, const Bound&, Context* context) {
  std::vector<Value> values;
  for (const auto& entry : self.AsDict()->entries) values.push_back(entry.second);
  return context->Items(std::move(values));
}
Value DictItems(const Value& self, const Bound&, Context* context) {
  return ApplyFilter("items", self, CallArgs(), context);
}
Value DictCopy(const Value& self, const Bound&, Context*) { return self; }

Value ListIndex(const Value& self, const Bound& bound, Context* context) {
  const auto& items = self.AsList()->items;
  for (size_t i = 0; bound[0] != nullptr && i < items.size(); ++i) {
    if (context->Equal(items[i], *bound[0])) return Value::Of(i);
  }
  context->Fail("index: the list does not hold this value");
  return Value();
}
Value ListCount(const Value& self, const Bound& bound, Context* context) {
  int64_t count = 0;
  for (const Value& item : self.AsList()->items) {
    if (bound[0] != nullptr && context->Equal(item, *bound[0])) ++count;
  }
  return Value::Of(count);
}

constexpr Operation kStringMethods[] = {
    {"capitalize", {}, ToCapitalized},
    {"count", {"sub"}, Count},
    {"endswith", {"suffix"}, EndsWith},
    {"find", {"sub"}, Find},
    {"isdigit", {}, IsDigits},
    {"join", {"iterable"}, Join},
    {"lower", {}, ToLower},
    {"lstrip", {"chars"}, StripLeft},
    {"removeprefix", {"prefix"}, RemovePrefix},
    {"removesuffix", {"suffix"}, RemoveSuffix},
    {"replace", {"old", "new", "count"}, Replace},
    {"rfind", {"sub"}, FindFromRight},
    {"rsplit", {"sep", "maxsplit"}, SplitFromRight},
    {"rstrip", {"chars"}, StripRight},
    {"split", {"sep", "maxsplit"}, Split},
    {"splitlines", {"keepends"}, SplitLines},
    {"startswith", {"prefix"}, StartsWith},
    {"strip", {"chars"}, StripBoth},
    {"title", {}, ToTitle},
    {"upper", {}, ToUpper},
};

constexpr Operation kDictMethods[] = {
    {"copy", {}, DictCopy}, {"get", {"key", "default"}, DictGet}, {"items", {}, DictItems},
    {"keys", {}, DictKeys}, {"values", {}, DictValues},
};

constexpr Operation kListMethods[] = {
    {"count", {"value"}, ListCount},
    {"index", {"value"}, ListIndex},
};

}  // namespace

Value CallMethod(const Value& receiver, std::string_view name, const CallArgs& args,
                 Context* context) {
  if (receiver.AsString() != nullptr) {
    return ApplyOperation(kStringMethods, "string method", name, receiver, args, context);
  }
  if (receiver.AsDict() != nullptr) {
    return ApplyOperation(kDictMethods, "dictionary method", name, receiver, args, context);
  }
  if (receiver.AsList() != nullptr) {
    return ApplyOperation(kListMethods, "list method", name, receiver, args, context);
  }
  context->Fail(
      Cat("a value of type ", receiver.TypeName(), " has no method '", name.substr(0, 40), "'"));
  return Value();
}

}  // namespace nibble::jinja
