// SPDX-License-Identifier: Apache-2.0
//
// The filters of templates: value | name(arguments), as Jinja 3.1 and, for tojson, transformers
// define them.

#include <algorithm>
#include <charconv>
#include <cmath>

#include "engine/base/cat.h"
#include "engine/tokenizer/template_context.h"
#include "engine/tokenizer/utf8.h"

namespace nibble::jinja {
namespace {

// A string argument, or `fallback` where it is missing or None.
std::string TextOr(const Value* value, std::string_view fallback, Context* context) {
  return value == nullptr || value->IsNone() ? std::string(fallback) : context->Str(*value);
}

bool FlagOr(const Value* value, bool fallback) {
  return value == nullptr ? fallback : value->IsTrue();
}

// A dotted path ("function.name", "0.id") looked up member by member.
Value AttributeOf(Value value, std::string_view path, Context* context) {
  while (!context->failed()) {
    const size_t dot = path.find('.');
    const std::string_view part = path.substr(0, dot);
    int64_t index = 0;
    const auto parsed = std::from_chars(part.data(), part.data() + part.size(), index);
    const bool is_index = parsed.ec == std::errc() && parsed.ptr == part.data() + part.size();
    value = context->Item(value, is_index ? Value::Of(index) : Value::Of(part));
    if (dot == std::string_view::npos) break;
    path.remove_prefix(dot + 1);
  }
  return value;
}

Value Attribute(const Value& value, const Value* path, Context* context) {
  if (path == nullptr || path->IsNone()) return value;
  return AttributeOf(value, context->Str(*path), context);
}

// --- text ---

Value Trim(const Value& v, const Bound& b, Context* c) {
  const std::string text = c->Str(v);
  const bool given = b[0] != nullptr && !b[0]->IsNone();
  const std::string chars = TextOr(b[0], "", c);
  return c->Text(std::string(Strip(text, given ? &chars : nullptr, true, true)));
}
Value ToUpper(const Value& v, const Bound&, Context* c) { return c->Text(Upper(c->Str(v))); }
Value ToLower(const Value& v, const Bound&, Context* c) { return c->Text(Lower(c->Str(v))); }
Value ToCapitalized(const Value& v, const Bound&, Context* c) {
  return c->Text(Capitalize(c->Str(v)));
}
Value Title(const Value& v, const Bound&, Context* c) {
  const std::string text = c->Str(v);
  std::string out;
  size_t word = 0;
  // Words begin after white space, hyphens and opening brackets.
  for (size_t pos = 0; pos <= text.size(); ++pos) {
    const bool separator =
        pos == text.size() ||
        std::string_view(" \t\n\r\f\v-({[<").find(text[pos]) != std::string::npos;
    if (!separator) continue;
    out += Capitalize(std::string_view(text).substr(word, pos - word));
    if (pos < text.size()) out.push_back(text[pos]);
    word = pos + 1;
  }
  return c->Text(std::move(out));
}
Value ToText(const Value& v, const Bound&, Context* c) {
  return v.AsString() != nullptr ? v : c->Text(c->Str(v));
}
Value Replace(const Value& v, const Bound& b, Context* c) {
  if (b[0] == nullptr || b[1] == nullptr) {
    c->Fail("replace needs two texts");
    return Value();
  }
  const Value text = ToText(v, {}, c);
  const Value from = ToText(*b[0], {}, c);
  const Value to = ToText(*b[1], {}, c);
  CallArgs args;
  args.args = {from, to};
  if (b[2] != nullptr && !b[2]->IsNone()) args.args.push_back(*b[2]);
  return c->failed() ? Value() : CallMethod(text, "replace", args, c);
}
Value Indent(const Value& v, const Bound& b, Context* c) {
  const std::string text = c->Str(v);
  std::string indention;
  if (b[0] != nullptr && b[0]->AsString() != nullptr) {
    indention = *b[0]->AsString();
  } else {
    const int64_t width = b[0] == nullptr ? 4 : c->Integer(*b[0], "indent");
    if (width < 0 || width > 1000) {
      c->Fail(Cat("indent is ", width, ", allowed are 0 to 1000"));
      return Value();
    }
    indention.assign(static_cast<size_t>(width), ' ');
  }
  const bool blank = FlagOr(b[2], false);
  std::string out = FlagOr(b[1], false) ? indention : "";
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    if (begin > 0) {
      out.push_back('\n');
      if ((blank || !line.empty()) && c->ChargeBytes(indention.size())) out += indention;
    }
    out += line;
    begin = end + 1;
  }
  return c->Text(std::move(out));
}
Value ToJson(const Value& v, const Bound& b, Context* c) {
  JsonStyle style;
  style.ensure_ascii = FlagOr(b[0], false);
  style.sort_keys = FlagOr(b[3], false);
  if (b[1] != nullptr && !b[1]->IsNone()) {
    const int64_t indent = c->Integer(*b[1], "indent");
    if (indent < 0 || indent > 64) {
      c->Fail(Cat("tojson: indent is ", indent, ", allowed are 0 to 64"));
      return Value();
    }
    style.indent = static_cast<int>(indent);
    style.item_separator = std::string(1, ',');
  }
  if (b[2] != nullptr && !b[2]->IsNone()) {
    const List* pair = b[2]->AsList();
    if (pair == nullptr || pair->items.size() != 2) {
      c->Fail("tojson: separators must be a pair");
      return Value();
    }
    style.item_separator = c->Str(pair->items[0]);
    style.key_separator = c->Str(pair->items[1]);
  }
  std::string out;
  if (!c->Charge(v.Weight())) return Value();
  if (!AppendJson(v, style, 0, Context::kMaxBytes, &out)) {
    c->Fail(Cat("a value of type ", v.TypeName(), " (or one inside) has no JSON form"));
    return Value();
  }
  return c->Text(std::move(out));
}

// --- numbers ---

Value Absolute(const Value& v, const Bound&, Context* c) {
  if (const double* d = v.As<double>()) return Value::Of(std::fabs(*d));
  const int64_t i = c->Integer(v, "abs");
  if (i == INT64_MIN) c->Fail("integer overflow");
  return Value::Of(i < 0 && i != INT64_MIN ? -i : i);
}
Value ToInteger(const Value& v, const Bound& b, Context* c) {
  int64_t i = 0;
  if (v.AsInt(&i)) return Value::Of(i);
  double d = 0;
  bool known = v.AsNumber(&d);
  if (const std::string* text = v.AsString()) {
    const std::string_view t = Strip(*text, nullptr, true, true);
    const auto whole = std::from_chars(t.data(), t.data() + t.size(), i);
    if (whole.ec == std::errc() && whole.ptr == t.data() + t.size()) return Value::Of(i);
    const auto real = std::from_chars(t.data(), t.data() + t.size(), d);
    known = real.ec == std::errc() && real.ptr == t.data() + t.size();
  }
  if (known && std::fabs(d) < 9e18) return Value::Of(static_cast<int64_t>(d));
  (void)c;
  return b[0] == nullptr ? Value::Of(int64_t{0}) : *b[0];
}
Value ToFloat(const Value& v, const Bound& b, Context*) {
  double d = 0;
  if (v.AsNumber(&d)) return Value::Of(d);
  if (const std::string* text = v.AsString()) {
    const std::string_view t = Strip(*text, nullptr, true, true);
    const auto real = std::from_chars(t.data(), t.data() + t.size(), d);
    if (real.ec == std::errc() && real.ptr == t.data() + t.size()) return Value::Of(d);
  }
  return b[0] == nullptr ? Value::Of(0.0) : *b[0];
}
Value Round(const Value& v, const Bound& b, Context* c) {
  double d = 0;
  if (!v.AsNumber(&d)) c->Fail(Cat("round needs a number, not ", v.TypeName()));
  const int64_t precision = b[0] == nullptr ? 0 : c->Integer(*b[0], "precision");
  const std::string method = TextOr(b[1], "common", c);
  if (precision < 0 || precision > 15) {
    c->Fail(Cat("round: precision is ", precision, ", allowed are 0 to 15"));
    return Value();
  }
  const double scale = std::pow(10.0, static_cast<double>(precision));
  if (method == "ceil") return Value::Of(std::ceil(d * scale) / scale);
  if (method == "floor") return Value::Of(std::floor(d * scale) / scale);
  if (method != "common") c->Fail("round: method must be common, ceil or floor");
  // Half to even, as Python rounds.
  return Value::Of(std::nearbyint(d * scale) / scale);
}

// --- lists ---

Value Length(const Value& v, const Bound&, Context* c) {
  if (const std::string* text = v.AsString()) {
    c->Charge(text->size() / 16);
    return Value::Of(CharacterCount(*text));
  }
  if (v.AsList() != nullptr) return Value::Of(v.AsList()->items.size());
  if (v.AsDict() != nullptr) return Value::Of(v.AsDict()->entries.size());
  if (!v.IsUndefined()) c->Fail(Cat("a value of type ", v.TypeName(), " has no length"));
  return Value::Of(int64_t{0});
}
Value First(const Value& v, const Bound&, Context* c) {
  const std::vector<Value> items = c->Iterate(v);
  return items.empty() ? Value::Missing("first item") : items.front();
}
Value Last(const Value& v, const Bound&, Context* c) {
  const std::vector<Value> items = c->Iterate(v);
  return items.empty() ? Value::Missing("last item") : items.back();
}
Value ToList(const Value& v, const Bound&, Context* c) { return c->Items(c->Iterate(v)); }
Value Items(const Value& v, const Bound&, Context* c) {
  std::vector<Value> pairs;
  if (const Dict* dict = v.AsDict()) {
    for (const auto& [key, value] : dict->entries) {
      pairs.push_back(c->Items({Value::Of(key), value}, /*tuple=*/true));
      if (c->failed()) break;
    }
  } else if (!v.IsUndefined()) {
    c->Fail(Cat("items needs a dictionary, not ", v.TypeName()));
  }
  return c->Items(std::move(pairs));
}
Value Join(const Value& v, const Bound& b, Context* c) {
  const std::string separator = TextOr(b[0], "", c);
  std::string out;
  bool first = true;
  for (const Value& item : c->Iterate(v)) {
    if (!first) out += separator;
    first = false;
    out += c->Str(Attribute(item, b[1], c));
    if (!c->ChargeBytes(separator.size() + 1)) return Value();
  }
  return c->Text(std::move(out));
}
Value Reverse(const Value& v, const Bound&, Context* c) {
  std::vector<Value> items = c->Iterate(v);
  std::reverse(items.begin(), items.end());
  if (v.AsString() == nullptr) return c->Items(std::move(items));
  std::string out;
  for (const Value& item : items) out += *item.AsString();
  return c->Text(std::move(out));
}

// Jinja compares texts without regard to case unless told otherwise.
Value SortKey(const Value& v, const Value* attribute, bool case_sensitive, Context* c) {
  Value key = Attribute(v, attribute, c);
  if (case_sensitive || key.AsString() == nullptr) return key;
  return c->Text(Lower(*key.AsString()));
}

// Merge sort: stable, and of a fixed number of steps whatever Less answers.
void SortByKeys(std::vector<std::pair<Value, Value>>* items, bool reverse, Context* c) {
  std::vector<std::pair<Value, Value>> merged;
  for (size_t width = 1; width < items->size() && !c->failed(); width *= 2) {
    merged.clear();
    for (size_t begin = 0; begin < items->size(); begin += 2 * width) {
      size_t left = begin;
      const size_t middle = std::min(begin + width, items->size());
      size_t right = middle;
      const size_t end = std::min(begin + 2 * width, items->size());
      while (left < middle || right < end) {
        const auto second_first = [&] {
          const Value& a = (*items)[left].first;
          const Value& b = (*items)[right].first;
          return reverse ? c->Less(a, b) : c->Less(b, a);
        };
        const bool take_right = left == middle || (right < end && second_first());
        merged.push_back((*items)[take_right ? right++ : left++]);
      }
    }
    items->swap(merged);
  }
}

Value Sort(const Value& v, const Bound& b, Context* c) {
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : c->Iterate(v)) {
    keyed.emplace_back(SortKey(item, b[2], FlagOr(b[1], false), c), item);
  }
  SortByKeys(&keyed, FlagOr(b[0], false), c);
  std::vector<Value> items;
  for (auto& entry : keyed) items.push_back(std::move(entry.second));
  return c->Items(std::move(items));
}
Value DictSort(const Value& v, const Bound& b, Context* c) {
  const bool by_value = TextOr(b[1], "key", c) == "value";
  std::vector<std::pair<Value, Value>> keyed;
  const Value pairs = Items(v, {}, c);
  for (const Value& pair : c->Iterate(pairs)) {
    const Value& key = pair.AsList()->items[by_value ? 1 : 0];
    keyed.emplace_back(SortKey(key, nullptr, FlagOr(b[0], false), c), pair);
  }
  SortByKeys(&keyed, FlagOr(b[2], false), c);
  std::vector<Value> items;
  for (auto& entry : keyed) items.push_back(std::move(entry.second));
  return c->Items(std::move(items));
}
Value Unique(const Value& v, const Bound& b, Context* c) {
  std::vector<Value> items;
  std::vector<Value> keys;
  for (const Value& item : c->Iterate(v)) {
    const Value key = SortKey(item, b[1], FlagOr(b[0], false), c);
    const bool seen = std::any_of(keys.begin(), keys.end(),
                                  [&](const Value& k) { return !c->failed() && c->Equal(k, key); });
    if (c->failed()) break;
    if (seen) continue;
    keys.push_back(key);
    items.push_back(item);
  }
  return c->Items(std::move(items));
}
Value Extreme(const Value& v, const Bound& b, Context* c, bool largest) {
  Value best = Value::Missing("item of an empty list");
  Value best_key;
  for (const Value& item : c->Iterate(v)) {
    const Value key = SortKey(item, b[1], FlagOr(b[0], false), c);
    if (best.IsUndefined() || (largest ? c->Less(best_key, key) : c->Less(key, best_key))) {
      best = item;
      best_key = key;
    }
  }
  return best;
}
Value Min(const Value& v, const Bound& b, Context* c) { return Extreme(v, b, c, false); }
Value Max(const Value& v, const Bound& b, Context* c) { return Extreme(v, b, c, true); }
Value Sum(const Value& v, const Bound& b, Context* c) {
  int64_t whole = 0;
  double real = 0;
  bool is_whole = true;
  if (b[1] != nullptr) {
    is_whole = b[1]->AsInt(&whole);
    if (!b[1]->AsNumber(&real)) c->Fail("sum: start must be a number");
  }
  for (const Value& item : c->Iterate(v)) {
    const Value value = Attribute(item, b[0], c);
    int64_t i = 0;
    double d = 0;
    if (!value.AsNumber(&d)) c->Fail(Cat("sum needs numbers, not ", value.TypeName()));
    is_whole = is_whole && value.AsInt(&i) && !__builtin_add_overflow(whole, i, &whole);
    real += d;
  }
  return is_whole ? Value::Of(whole) : Value::Of(real);
}

// --- anything ---

Value Default(const Value& v, const Bound& b, Context*) {
  const bool replace = v.IsUndefined() || (FlagOr(b[1], false) && !v.IsTrue());
  if (!replace) return v;
  return b[0] == nullptr ? Value::Of("") : *b[0];
}
Value Same(const Value& v, const Bound&, Context*) { return v; }
constexpr Operation kFilters[] = {
    {"abs", {}, Absolute},
    {"capitalize", {}, ToCapitalized},
    {"count", {}, Length},
    {"d", {"default_value", "boolean"}, Default},
    {"default", {"default_value", "boolean"}, Default},
    {"dictsort", {"case_sensitive", "by", "reverse"}, DictSort},
    {"first", {}, First},
    {"float", {"default"}, ToFloat},
    {"indent", {"width", "first", "blank"}, Indent},
    {"int", {"default"}, ToInteger},
    {"items", {}, Items},
    {"join", {"d", "attribute"}, Join},
    {"last", {}, Last},
    {"length", {}, Length},
    {"list", {}, ToList},
    {"lower", {}, ToLower},
    {"max", {"case_sensitive", "attribute"}, Max},
    {"min", {"case_sensitive", "attribute"}, Min},
    {"replace", {"old", "new", "count"}, Replace},
    {"reverse", {}, Reverse},
    {"round", {"precision", "method"}, Round},
    {"safe", {}, Same},
    {"sort", {"reverse", "case_sensitive", "attribute"}, Sort},
    {"string", {}, ToText},
    {"sum", {"attribute", "start"}, Sum},
    {"title", {}, Title},
    {"tojson", {"ensure_ascii", "indent", "separators", "sort_keys"}, ToJson},
    {"trim", {"chars"}, Trim},
    {"unique", {"case_sensitive", "attribute"}, Unique},
    {"upper", {}, ToUpper},
};

// --- filters that take another filter or test ---

// The arguments behind the first `skip`.
CallArgs Rest(const CallArgs& args, size_t skip) {
  CallArgs rest;
  rest.args.assign(args.args.begin() + static_cast<ptrdiff_t>(std::min(skip, args.args.size())),
                   args.args.end());
  rest.named = args.named;
  return rest;
}

// As in Jinja, whatever is false (none, undefined, 0) has no items here.
std::vector<Value> ItemsOf(const Value& v, Context* c) {
  return v.IsTrue() ? c->Iterate(v) : std::vector<Value>();
}

// select, reject, selectattr, rejectattr: keep the items (or those whose attribute) passes a test;
// without a test, those that are true.
Value Select(const Value& v, const CallArgs& args, bool by_attribute, bool keep, Context* c) {
  const size_t test_at = by_attribute ? 1 : 0;
  if (by_attribute && args.args.empty()) {
    c->Fail("selectattr and rejectattr need an attribute");
    return Value();
  }
  std::vector<Value> items;
  for (const Value& item : ItemsOf(v, c)) {
    if (c->failed()) break;
    const Value subject = by_attribute ? Attribute(item, &args.args[0], c) : item;
    const bool passes = args.args.size() > test_at ? ApplyTest(c->Str(args.args[test_at]), subject,
                                                               Rest(args, test_at + 1), c)
                                                   : subject.IsTrue();
    if (passes == keep) items.push_back(item);
  }
  return c->Items(std::move(items));
}

// map(attribute="name", default=...) or map("filter", arguments ...).
Value Map(const Value& v, const CallArgs& args, Context* c) {
  const Value* attribute = nullptr;
  const Value* fallback = nullptr;
  for (const auto& [key, value] : args.named) {
    if (key == "attribute") attribute = &value;
    if (key == "default") fallback = &value;
  }
  if (args.args.empty() && attribute == nullptr) {
    c->Fail("map needs a filter or attribute=");
    return Value();
  }
  std::vector<Value> items;
  for (const Value& item : ItemsOf(v, c)) {
    if (c->failed()) break;
    if (args.args.empty()) {
      Value member = Attribute(item, attribute, c);
      items.push_back(member.IsUndefined() && fallback != nullptr ? *fallback : member);
    } else {
      items.push_back(ApplyFilter(c->Str(args.args[0]), item, Rest(args, 1), c));
    }
  }
  return c->Items(std::move(items));
}

}  // namespace

Value ApplyFilter(std::string_view name, const Value& input, const CallArgs& args,
                  Context* context) {
  if (name == "map") return Map(input, args, context);
  if (name == "select") return Select(input, args, false, true, context);
  if (name == "reject") return Select(input, args, false, false, context);
  if (name == "selectattr") return Select(input, args, true, true, context);
  if (name == "rejectattr") return Select(input, args, true, false, context);
  return ApplyOperation(kFilters, "filter", name, input, args, context);
}

}  // namespace nibble::jinja
