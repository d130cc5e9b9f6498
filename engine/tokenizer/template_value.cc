// SPDX-License-Identifier: Apache-2.0
#include "engine/tokenizer/template_value.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "engine/tokenizer/utf8.h"

namespace nibble::jinja {
namespace {

// Python's repr of a float: the shortest digits that read back the same, with an exponent outside
// 1e-4 .. 1e16.
std::string FloatText(double d) {
  if (std::isnan(d)) return "nan";
  if (std::isinf(d)) return d < 0 ? "-inf" : "inf";
  char buffer[64];
  const auto scientific =
      std::to_chars(buffer, buffer + sizeof(buffer), d, std::chars_format::scientific);
  const std::string text(buffer, scientific.ptr);
  const size_t e = text.find('e');
  const int exponent = std::atoi(text.c_str() + e + 1);
  if (exponent < -4 || exponent >= 16) return text;
  const auto fixed = std::to_chars(buffer, buffer + sizeof(buffer), d, std::chars_format::fixed);
  std::string plain(buffer, fixed.ptr);
  if (plain.find('.') == std::string::npos) plain += ".0";
  return plain;
}

void AppendQuoted(std::string_view text, std::string* out) {
  const bool single = text.find('\'') != std::string_view::npos;
  const bool both = single && text.find('"') != std::string_view::npos;
  const char quote = single && !both ? '"' : '\'';
  out->push_back(quote);
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == quote || c == '\\') {
      out->push_back('\\');
      out->push_back(c);
    } else if (c == '\n') {
      out->append("\\n");
    } else if (c == '\r') {
      out->append("\\r");
    } else if (c == '\t') {
      out->append("\\t");
    } else if (byte < 0x20 || byte == 0x7F) {
      char escape[8];
      std::snprintf(escape, sizeof(escape), "\\x%02x", byte);
      out->append(escape);
    } else {
      out->push_back(c);
    }
  }
  out->push_back(quote);
}

void AppendUnicodeEscape(char32_t code, std::string* out) {
  char escape[16];
  if (code >= 0x10000) {
    const char32_t rest = code - 0x10000;
    std::snprintf(escape, sizeof(escape), "\\u%04x\\u%04x",
                  static_cast<unsigned>(0xD800 + (rest >> 10)),
                  static_cast<unsigned>(0xDC00 + (rest & 0x3FF)));
  } else {
    std::snprintf(escape, sizeof(escape), "\\u%04x", static_cast<unsigned>(code));
  }
  out->append(escape);
}

void AppendJsonString(std::string_view text, bool ensure_ascii, std::string* out) {
  out->push_back('"');
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Char c = DecodeUtf8(text, pos);
    switch (c.code) {
      case '"':
        out->append("\\\"");
        break;
      case '\\':
        out->append("\\\\");
        break;
      case '\n':
        out->append("\\n");
        break;
      case '\r':
        out->append("\\r");
        break;
      case '\t':
        out->append("\\t");
        break;
      case '\b':
        out->append("\\b");
        break;
      case '\f':
        out->append("\\f");
        break;
      default:
        if (c.code < 0x20 || (ensure_ascii && c.code > 0x7E)) {
          AppendUnicodeEscape(c.code, out);
        } else {
          out->append(text.substr(pos, c.size));
        }
    }
    pos += c.size;
  }
  out->push_back('"');
}

void AppendNewline(const JsonStyle& style, int level, std::string* out) {
  if (style.indent < 0) return;
  out->push_back('\n');
  out->append(static_cast<size_t>(style.indent) * static_cast<size_t>(level), ' ');
}

}  // namespace

Value Value::OfList(std::vector<Value> items, bool tuple) {
  auto list = std::make_shared<List>();
  list->items = std::move(items);
  list->tuple = tuple;
  for (const Value& item : list->items) {
    list->depth = std::max(list->depth, item.Depth() + 1);
    list->weight = std::min(kMaxValueWeight, list->weight + item.Weight());
  }
  return Value(std::shared_ptr<const List>(std::move(list)));
}

Value Value::OfDict(std::vector<std::pair<std::string, Value>> entries) {
  auto dict = std::make_shared<Dict>();
  for (auto& [key, value] : entries) {
    dict->depth = std::max(dict->depth, value.Depth() + 1);
    dict->weight = std::min(kMaxValueWeight, dict->weight + value.Weight() + 1 + key.size() / 16);
    const auto [it, inserted] = dict->index.try_emplace(key, dict->entries.size());
    if (inserted) {
      dict->entries.emplace_back(std::move(key), std::move(value));
    } else {
      dict->entries[it->second].second = std::move(value);
    }
  }
  return Value(std::shared_ptr<const Dict>(std::move(dict)));
}

bool Value::AsInt(int64_t* value) const {
  if (const auto* i = As<int64_t>()) {
    *value = *i;
    return true;
  }
  if (const auto* b = As<bool>()) {
    *value = *b ? 1 : 0;
    return true;
  }
  return false;
}

bool Value::AsNumber(double* value) const {
  int64_t i = 0;
  if (AsInt(&i)) {
    *value = static_cast<double>(i);
    return true;
  }
  if (const auto* d = As<double>()) {
    *value = *d;
    return true;
  }
  return false;
}

bool Value::IsTrue() const {
  double number = 0;
  if (AsNumber(&number)) return number != 0;
  if (IsUndefined() || IsNone()) return false;
  if (const std::string* text = AsString()) return !text->empty();
  if (const List* list = AsList()) return !list->items.empty();
  if (const Dict* dict = AsDict()) return !dict->entries.empty();
  return true;
}

std::string Value::TypeName() const {
  static constexpr const char* kNames[] = {"undefined", "None", "bool",     "int",
                                           "float",     "str",  "list",     "dict",
                                           "namespace", "loop", "function", "macro"};
  return kNames[storage_.index()];
}

int Value::Depth() const {
  if (const List* list = AsList()) return list->depth;
  if (const Dict* dict = AsDict()) return dict->depth;
  return 0;
}

uint64_t Value::Weight() const {
  if (const std::string* text = AsString()) return 1 + text->size() / 16;
  if (const List* list = AsList()) return list->weight;
  if (const Dict* dict = AsDict()) return dict->weight;
  return 1;
}

const Value* Dict::Find(std::string_view key) const {
  const auto it = index.find(key);
  return it == index.end() ? nullptr : &entries[it->second].second;
}

const Value* Namespace::Find(std::string_view key) const {
  for (const auto& [name, value] : entries) {
    if (name == key) return &value;
  }
  return nullptr;
}

void Namespace::Set(std::string_view key, Value value) {
  for (auto& [name, old] : entries) {
    if (name == key) {
      old = std::move(value);
      return;
    }
  }
  entries.emplace_back(std::string(key), std::move(value));
}

bool FromJson(const nlohmann::ordered_json& json, int depth, Value* value) {
  using Kind = nlohmann::ordered_json::value_t;
  switch (json.type()) {
    case Kind::null:
      *value = Value::OfNone();
      return true;
    case Kind::boolean:
      *value = Value::Of(json.get<bool>());
      return true;
    case Kind::number_integer:
      *value = Value::Of(json.get<int64_t>());
      return true;
    case Kind::number_unsigned:
      *value = json.get<uint64_t>() > INT64_MAX ? Value::Of(json.get<double>())
                                                : Value::Of(json.get<int64_t>());
      return true;
    case Kind::number_float:
      *value = Value::Of(json.get<double>());
      return true;
    case Kind::string: {
      std::string text;
      AppendValidUtf8(json.get_ref<const std::string&>(), &text);
      *value = Value::Of(std::move(text));
      return true;
    }
    case Kind::array: {
      if (depth >= kMaxValueDepth) return false;
      std::vector<Value> items(json.size());
      for (size_t i = 0; i < items.size(); ++i) {
        if (!FromJson(json[i], depth + 1, &items[i])) return false;
      }
      *value = Value::OfList(std::move(items));
      return true;
    }
    case Kind::object: {
      if (depth >= kMaxValueDepth) return false;
      std::vector<std::pair<std::string, Value>> entries;
      for (const auto& [key, member] : json.items()) {
        Value converted;
        if (!FromJson(member, depth + 1, &converted)) return false;
        std::string name;
        AppendValidUtf8(key, &name);
        entries.emplace_back(std::move(name), std::move(converted));
      }
      *value = Value::OfDict(std::move(entries));
      return true;
    }
    default:
      return false;
  }
}

void AppendStr(const Value& value, size_t limit, std::string* out) {
  if (const std::string* text = value.AsString()) {
    out->append(*text);
  } else if (!value.IsUndefined()) {
    AppendRepr(value, limit, out);
  }
}

void AppendRepr(const Value& value, size_t limit, std::string* out) {
  if (out->size() > limit) return;
  if (const auto* b = value.As<bool>()) {
    out->append(*b ? "True" : "False");
  } else if (const auto* i = value.As<int64_t>()) {
    out->append(std::to_string(*i));
  } else if (const auto* d = value.As<double>()) {
    out->append(FloatText(*d));
  } else if (value.IsNone()) {
    out->append("None");
  } else if (value.IsUndefined()) {
    out->append("Undefined");
  } else if (const std::string* text = value.AsString()) {
    AppendQuoted(*text, out);
  } else if (const List* list = value.AsList()) {
    out->push_back(list->tuple ? '(' : '[');
    for (size_t n = 0; n < list->items.size() && out->size() <= limit; ++n) {
      if (n > 0) out->append(", ");
      AppendRepr(list->items[n], limit, out);
    }
    if (list->tuple && list->items.size() == 1) out->push_back(',');
    out->push_back(list->tuple ? ')' : ']');
  } else if (const Dict* dict = value.AsDict()) {
    out->push_back('{');
    for (size_t n = 0; n < dict->entries.size() && out->size() <= limit; ++n) {
      if (n > 0) out->append(", ");
      AppendQuoted(dict->entries[n].first, out);
      out->append(": ");
      AppendRepr(dict->entries[n].second, limit, out);
    }
    out->push_back('}');
  } else {
    out->append("<").append(value.TypeName()).append(">");
  }
}

bool AppendJson(const Value& value, const JsonStyle& style, int level, size_t limit,
                std::string* out) {
  if (out->size() > limit) return true;
  if (const auto* b = value.As<bool>()) {
    out->append(*b ? "true" : "false");
  } else if (const auto* i = value.As<int64_t>()) {
    out->append(std::to_string(*i));
  } else if (const auto* d = value.As<double>()) {
    out->append(std::isnan(*d)   ? "NaN"
                : std::isinf(*d) ? (*d < 0 ? "-Infinity" : "Infinity")
                                 : FloatText(*d));
  } else if (value.IsNone()) {
    out->append("null");
  } else if (const std::string* text = value.AsString()) {
    AppendJsonString(*text, style.ensure_ascii, out);
  } else if (const List* list = value.AsList()) {
    out->push_back('[');
    for (size_t n = 0; n < list->items.size() && out->size() <= limit; ++n) {
      if (n > 0) out->append(style.item_separator);
      AppendNewline(style, level + 1, out);
      if (!AppendJson(list->items[n], style, level + 1, limit, out)) return false;
    }
    if (!list->items.empty()) AppendNewline(style, level, out);
    out->push_back(']');
  } else if (const Dict* dict = value.AsDict()) {
    std::vector<size_t> order(dict->entries.size());
    for (size_t n = 0; n < order.size(); ++n) order[n] = n;
    if (style.sort_keys) {
      std::sort(order.begin(), order.end(), [dict](size_t x, size_t y) {
        return dict->entries[x].first < dict->entries[y].first;
      });
    }
    out->push_back('{');
    for (size_t n = 0; n < order.size() && out->size() <= limit; ++n) {
      if (n > 0) out->append(style.item_separator);
      AppendNewline(style, level + 1, out);
      const auto& [key, member] = dict->entries[order[n]];
      AppendJsonString(key, style.ensure_ascii, out);
      out->append(style.key_separator);
      if (!AppendJson(member, style, level + 1, limit, out)) return false;
    }
    if (!dict->entries.empty()) AppendNewline(style, level, out);
    out->push_back('}');
  } else {
    return false;
  }
  return true;
}

bool Equals(const Value& a, const Value& b) {
  int64_t ia = 0;
  int64_t ib = 0;
  if (a.AsInt(&ia) && b.AsInt(&ib)) return ia == ib;
  double na = 0;
  double nb = 0;
  if (a.AsNumber(&na) && b.AsNumber(&nb)) return na == nb;
  if (a.IsNone() || b.IsNone()) return a.IsNone() && b.IsNone();
  if (a.IsUndefined() || b.IsUndefined()) return a.IsUndefined() && b.IsUndefined();
  if (a.AsString() != nullptr && b.AsString() != nullptr) return *a.AsString() == *b.AsString();
  if (a.AsList() != nullptr && b.AsList() != nullptr) {
    const auto& x = a.AsList()->items;
    const auto& y = b.AsList()->items;
    return x.size() == y.size() && std::equal(x.begin(), x.end(), y.begin(), Equals);
  }
  if (a.AsDict() != nullptr && b.AsDict() != nullptr) {
    const Dict& x = *a.AsDict();
    const Dict& y = *b.AsDict();
    if (x.entries.size() != y.entries.size()) return false;
    return std::all_of(x.entries.begin(), x.entries.end(), [&y](const auto& entry) {
      const Value* other = y.Find(entry.first);
      return other != nullptr && Equals(entry.second, *other);
    });
  }
  return a.AsNamespace() != nullptr && a.AsNamespace() == b.AsNamespace();
}

bool LessThan(const Value& a, const Value& b, bool* less) {
  int64_t ia = 0;
  int64_t ib = 0;
  if (a.AsInt(&ia) && b.AsInt(&ib)) {
    *less = ia < ib;
    return true;
  }
  double na = 0;
  double nb = 0;
  if (a.AsNumber(&na) && b.AsNumber(&nb)) {
    *less = na < nb;
    return true;
  }
  if (a.AsString() != nullptr && b.AsString() != nullptr) {
    // The order of UTF-8 bytes is the order of code points.
    *less = *a.AsString() < *b.AsString();
    return true;
  }
  if (a.AsList() != nullptr && b.AsList() != nullptr) {
    const auto& x = a.AsList()->items;
    const auto& y = b.AsList()->items;
    for (size_t n = 0; n < std::min(x.size(), y.size()); ++n) {
      if (!Equals(x[n], y[n])) return LessThan(x[n], y[n], less);
    }
    *less = x.size() < y.size();
    return true;
  }
  return false;
}

}  // namespace nibble::jinja
