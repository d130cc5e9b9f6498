// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/cat.h"
#include "engine/tokenizer/template_context.h"

namespace nibble::jinja {
namespace {

Value FloatArithmetic(double a, std::string_view op, double b, Context* context) {
  if (op == "+") return Value::Of(a + b);
  if (op == "-") return Value::Of(a - b);
  if (op == "*") return Value::Of(a * b);
  if (op == "**") return Value::Of(std::pow(a, b));
  if (b == 0) {
    context->Fail("division by zero");
    return Value();
  }
  if (op == "/") return Value::Of(a / b);
  const double quotient = std::floor(a / b);
  return Value::Of(op == "//" ? quotient : a - quotient * b);
}

Value IntegerArithmetic(int64_t a, std::string_view op, int64_t b, Context* context) {
  int64_t result = 0;
  bool overflow = false;
  if (op == "+") {
    overflow = __builtin_add_overflow(a, b, &result);
  } else if (op == "-") {
    overflow = __builtin_sub_overflow(a, b, &result);
  } else if (op == "*") {
    overflow = __builtin_mul_overflow(a, b, &result);
  } else if (op == "**") {
    if (b < 0) return FloatArithmetic(static_cast<double>(a), op, static_cast<double>(b), context);
    result = 1;
    // Beyond 64 only 0, 1 and -1 stay in range, and they repeat with period 2.
    for (int64_t i = 0; i < (b > 64 ? 64 + b % 2 : b) && !overflow; ++i) {
      overflow = __builtin_mul_overflow(result, a, &result);
    }
  } else {
    if (b == 0) {
      context->Fail("division by zero");
      return Value();
    }
    if (b == -1) {
      overflow = op == "//" && __builtin_sub_overflow(int64_t{0}, a, &result);
    } else {
      // Python rounds down, and the remainder has the divisor's sign.
      const int64_t remainder = a % b;
      const bool adjust = remainder != 0 && (remainder < 0) != (b < 0);
      result = op == "//" ? a / b - (adjust ? 1 : 0) : remainder + (adjust ? b : 0);
    }
  }
  if (overflow) context->Fail("integer overflow");
  return context->failed() ? Value() : Value::Of(result);
}

Value Repeat(const Value& value, int64_t count, Context* context) {
  const uint64_t times = count < 0 ? 0 : static_cast<uint64_t>(count);
  const uint64_t size = value.AsString() != nullptr ? value.AsString()->size()
                        : value.AsList() != nullptr ? value.AsList()->items.size()
                                                    : 0;
  if (value.AsString() == nullptr && value.AsList() == nullptr) {
    context->Fail(Cat("a value of type ", value.TypeName(), " cannot be repeated"));
    return Value();
  }
  if (size > 0 && times > Context::kMaxBytes / size) {
    context->ChargeBytes(Context::kMaxBytes + 1);
    return Value();
  }
  if (const std::string* text = value.AsString()) {
    if (!context->ChargeBytes(size * times)) return Value();
    std::string out;
    for (uint64_t i = 0; i < times && size > 0; ++i) out += *text;
    return Value::Of(std::move(out));
  }
  if (!context->ChargeBytes(size * times * sizeof(Value))) return Value();
  std::vector<Value> items;
  for (uint64_t i = 0; i < times && size > 0; ++i) {
    items.insert(items.end(), value.AsList()->items.begin(), value.AsList()->items.end());
  }
  return context->Items(std::move(items), value.AsList()->tuple);
}

}  // namespace

Value Arithmetic(const Value& a, std::string_view op, const Value& b, Context* context) {
  for (const Value* operand : {&a, &b}) {
    if (const Undefined* undefined = operand->As<Undefined>()) {
      context->Fail(Cat("'", undefined->name, "' is undefined"));
      return Value();
    }
  }
  int64_t ia = 0;
  int64_t ib = 0;
  if (a.AsInt(&ia) && b.AsInt(&ib) && op != "/") return IntegerArithmetic(ia, op, ib, context);
  double da = 0;
  double db = 0;
  if (a.AsNumber(&da) && b.AsNumber(&db)) return FloatArithmetic(da, op, db, context);
  if (op == "+" && a.AsString() != nullptr && b.AsString() != nullptr) {
    return context->Text(*a.AsString() + *b.AsString());
  }
  if (op == "+" && a.AsList() != nullptr && b.AsList() != nullptr) {
    std::vector<Value> items = a.AsList()->items;
    items.insert(items.end(), b.AsList()->items.begin(), b.AsList()->items.end());
    return context->Items(std::move(items), a.AsList()->tuple);
  }
  if (op == "*" && b.AsInt(&ib)) return Repeat(a, ib, context);
  if (op == "*" && a.AsInt(&ia)) return Repeat(b, ia, context);
  context->Fail(Cat("'", op, "' is not supported between ", a.TypeName(), " and ", b.TypeName()));
  return Value();
}

}  // namespace nibble::jinja
