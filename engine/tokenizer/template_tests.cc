// SPDX-License-Identifier: Apache-2.0
//
// The tests of templates: value is name.

#include "engine/tokenizer/template_context.h"

namespace nibble::jinja {
namespace {

Value Yes(bool b) { return Value::Of(b); }

// A test with one argument, which it cannot do without.
template <typename Predicate>
Value Binary(const Bound& bound, Context* context, Predicate predicate) {
  if (bound[0] == nullptr) {
    context->Fail("this test needs an argument");
    return Value();
  }
  return Yes(predicate(*bound[0]));
}

Value IsEqual(const Value& v, const Bound& b, Context* c) {
  return Binary(b, c, [&](const Value& other) { return c->Equal(v, other); });
}
Value IsUnequal(const Value& v, const Bound& b, Context* c) {
  return Binary(b, c, [&](const Value& other) { return !c->Equal(v, other); });
}
Value IsLess(const Value& v, const Bound& b, Context* c) {
  return Binary(b, c, [&](const Value& other) { return c->Less(v, other); });
}
Value IsGreater(const Value& v, const Bound& b, Context* c) {
  return Binary(b, c, [&](const Value& other) { return c->Less(other, v); });
}
Value IsLessOrEqual(const Value& v, const Bound& b, Context* c) {
  return Binary(b, c, [&](const Value& other) { return c->Equal(v, other) || c->Less(v, other); });
}
Value IsGreaterOrEqual(const Value& v, const Bound& b, Context* c) {
  return Binary(b, c, [&](const Value& other) { return c->Equal(v, other) || c->Less(other, v); });
}
Value IsIn(const Value& v, const Bound& b, Context* c) {
  return Binary(b, c, [&](const Value& other) { return c->Contains(other, v); });
}
Value IsSameAs(const Value& v, const Bound& b, Context* c) {
  return Binary(b, c, [&](const Value& other) {
    return v.TypeName() == other.TypeName() && c->Equal(v, other);
  });
}
Value IsDivisibleBy(const Value& v, const Bound& b, Context* c) {
  return Binary(b, c, [&](const Value& other) {
    const int64_t divisor = c->Integer(other, "divisibleby");
    if (divisor == 0) c->Fail("division by zero");
    return !c->failed() && (divisor == -1 || c->Integer(v, "divisibleby") % divisor == 0);
  });
}

Value IsDefined(const Value& v, const Bound&, Context*) { return Yes(!v.IsUndefined()); }
Value IsUndefined(const Value& v, const Bound&, Context*) { return Yes(v.IsUndefined()); }
Value IsNone(const Value& v, const Bound&, Context*) { return Yes(v.IsNone()); }
Value IsString(const Value& v, const Bound&, Context*) { return Yes(v.AsString() != nullptr); }
Value IsMapping(const Value& v, const Bound&, Context*) { return Yes(v.AsDict() != nullptr); }
Value IsBoolean(const Value& v, const Bound&, Context*) { return Yes(v.As<bool>() != nullptr); }
Value IsInteger(const Value& v, const Bound&, Context*) { return Yes(v.As<int64_t>() != nullptr); }
Value IsFloat(const Value& v, const Bound&, Context*) { return Yes(v.As<double>() != nullptr); }
Value IsNumber(const Value& v, const Bound&, Context*) {
  double number = 0;
  return Yes(v.AsNumber(&number));
}
Value IsTrue(const Value& v, const Bound&, Context*) {
  return Yes(v.As<bool>() != nullptr && *v.As<bool>());
}
Value IsFalse(const Value& v, const Bound&, Context*) {
  return Yes(v.As<bool>() != nullptr && !*v.As<bool>());
}
// Undefined can be iterated over (it is empty) but is no sequence.
Value IsIterable(const Value& v, const Bound&, Context*) {
  return Yes(v.AsString() != nullptr || v.AsList() != nullptr || v.AsDict() != nullptr ||
             v.IsUndefined());
}
Value IsSequence(const Value& v, const Bound&, Context*) {
  return Yes(v.AsString() != nullptr || v.AsList() != nullptr || v.AsDict() != nullptr);
}
Value IsCallable(const Value& v, const Bound&, Context*) {
  return Yes(v.As<Function>() != nullptr || v.As<const MacroNode*>() != nullptr);
}
Value IsOdd(const Value& v, const Bound&, Context* c) { return Yes(c->Integer(v, "odd") % 2 != 0); }
Value IsEven(const Value& v, const Bound&, Context* c) {
  return Yes(c->Integer(v, "even") % 2 == 0);
}
Value IsLower(const Value& v, const Bound&, Context* c) {
  const std::string text = c->Str(v);
  return Yes(Lower(text) == text && Upper(text) != text);
}
Value IsUpper(const Value& v, const Bound&, Context* c) {
  const std::string text = c->Str(v);
  return Yes(Upper(text) == text && Lower(text) != text);
}

constexpr Operation kTests[] = {
    {"!=", {"other"}, IsUnequal},
    {"<", {"other"}, IsLess},
    {"<=", {"other"}, IsLessOrEqual},
    {"==", {"other"}, IsEqual},
    {">", {"other"}, IsGreater},
    {">=", {"other"}, IsGreaterOrEqual},
    {"boolean", {}, IsBoolean},
    {"callable", {}, IsCallable},
    {"defined", {}, IsDefined},
    {"divisibleby", {"num"}, IsDivisibleBy},
    {"eq", {"other"}, IsEqual},
    {"equalto", {"other"}, IsEqual},
    {"even", {}, IsEven},
    {"false", {}, IsFalse},
    {"float", {}, IsFloat},
    {"ge", {"other"}, IsGreaterOrEqual},
    {"greaterthan", {"other"}, IsGreater},
    {"gt", {"other"}, IsGreater},
    {"in", {"seq"}, IsIn},
    {"integer", {}, IsInteger},
    {"iterable", {}, IsIterable},
    {"le", {"other"}, IsLessOrEqual},
    {"lessthan", {"other"}, IsLess},
    {"lower", {}, IsLower},
    {"lt", {"other"}, IsLess},
    {"mapping", {}, IsMapping},
    {"ne", {"other"}, IsUnequal},
    {"none", {}, IsNone},
    {"number", {}, IsNumber},
    {"odd", {}, IsOdd},
    {"sameas", {"other"}, IsSameAs},
    {"sequence", {}, IsSequence},
    {"string", {}, IsString},
    {"true", {}, IsTrue},
    {"undefined", {}, IsUndefined},
    {"upper", {}, IsUpper},
};

}  // namespace

bool ApplyTest(std::string_view name, const Value& input, const CallArgs& args, Context* context) {
  return ApplyOperation(kTests, "test", name, input, args, context).IsTrue();
}

}  // namespace nibble::jinja
