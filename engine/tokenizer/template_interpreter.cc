// SPDX-License-Identifier: Apache-2.0
#include "engine/tokenizer/template_interpreter.h"

#include <algorithm>

#include "engine/base/cat.h"
#include "engine/tokenizer/template_context.h"
#include "engine/tokenizer/text.h"

namespace nibble::jinja {
namespace {

constexpr size_t kMaxOutputBytes = size_t{16} << 20;
constexpr int kMaxDepth = 400;  // of evaluations within each other, macros included

enum class Flow { kNormal, kBreak, kContinue };

class Interpreter {
 public:
  explicit Interpreter(std::optional<int64_t> now) : now_(now) { scopes_.emplace_back(); }

  absl::StatusOr<std::string> Run(const Template& parsed,
                                  std::vector<std::pair<std::string, Value>> variables) {
    for (auto& [name, value] : variables) Assign(name, std::move(value));
    std::string text;
    out_ = &text;
    Execute(parsed.body);
    if (context_.failed()) return context_.status();
    return text;
  }

 private:
  using Scope = TextMap<Value>;

  // --- names ---

  void Assign(const std::string& name, Value value) {
    scopes_.back().insert_or_assign(name, std::move(value));
  }

  // Innermost first, down to the macro's own scope; then the template's.
  Value Lookup(const std::string& name) {
    for (size_t i = scopes_.size(); i > scope_base_; --i) {
      const auto it = scopes_[i - 1].find(name);
      if (it != scopes_[i - 1].end()) return it->second;
    }
    if (const auto it = scopes_[0].find(name); it != scopes_[0].end()) return it->second;
    if (name == "range") return Value(Function::kRange);
    if (name == "namespace") return Value(Function::kNamespace);
    if (name == "dict") return Value(Function::kDict);
    if (name == "raise_exception") return Value(Function::kRaiseException);
    if (name == "strftime_now") return Value(Function::kStrftimeNow);
    return Value::Missing(name);
  }

  // Names = value, one by one where there are several.
  void Unpack(const std::vector<std::string>& names, const Value& value) {
    if (names.size() == 1) {
      Assign(names[0], value);
      return;
    }
    const std::vector<Value> items = context_.Iterate(value);
    if (items.size() != names.size()) {
      context_.Fail(Cat(items.size(), " values for ", names.size(), " names"));
      return;
    }
    for (size_t i = 0; i < names.size(); ++i) Assign(names[i], items[i]);
  }

  // --- statements ---

  bool Deeper() {
    if (depth_ < kMaxDepth) return true;
    context_.Fail(Cat("evaluation is nested more than ", kMaxDepth, " deep"));
    return false;
  }

  void Print(std::string_view text) {
    if (!context_.Charge(1 + text.size() / 16)) return;
    if (text.size() > kMaxOutputBytes - std::min(kMaxOutputBytes, out_->size())) {
      context_.Charge(Context::kMaxSteps + 1);
      return;
    }
    out_->append(text);
  }

  Flow Execute(const Block& block) {
    if (!Deeper()) return Flow::kNormal;
    ++depth_;
    Flow flow = Flow::kNormal;
    for (const std::unique_ptr<Stmt>& stmt : block) {
      context_.set_line(stmt->line);
      if (!context_.Charge(1)) break;
      flow = ExecuteOne(*stmt);
      if (flow != Flow::kNormal || context_.failed()) break;
    }
    --depth_;
    return flow;
  }

  Flow ExecuteOne(const Stmt& stmt) {
    switch (stmt.kind) {
      case StmtKind::kText:
        Print(stmt.text);
        return Flow::kNormal;
      case StmtKind::kOutput:
        Print(context_.Str(Evaluate(*stmt.expr)));
        return Flow::kNormal;
      case StmtKind::kIf:
        for (const auto& [condition, body] : stmt.branches) {
          if (condition == nullptr || Evaluate(*condition).IsTrue()) {
            return context_.failed() ? Flow::kNormal : Execute(body);
          }
        }
        return Flow::kNormal;
      case StmtKind::kFor:
        ExecuteFor(stmt);
        return Flow::kNormal;
      case StmtKind::kSet:
        ExecuteSet(stmt);
        return Flow::kNormal;
      case StmtKind::kSetBlock:
        Assign(stmt.names[0], Capture(stmt));
        return Flow::kNormal;
      case StmtKind::kFilterBlock:
        Print(context_.Str(Capture(stmt)));
        return Flow::kNormal;
      case StmtKind::kMacro:
        Assign(stmt.macro->name, Value(static_cast<const MacroNode*>(stmt.macro.get())));
        return Flow::kNormal;
      case StmtKind::kWith: {
        Scope scope;
        for (const auto& [name, expr] : stmt.assignments) {
          scope.insert_or_assign(name, Evaluate(*expr));
        }
        scopes_.push_back(std::move(scope));
        const Flow flow = Execute(stmt.body);
        scopes_.pop_back();
        return flow;
      }
      case StmtKind::kScope:
        return Execute(stmt.body);
      case StmtKind::kBreak:
        return Flow::kBreak;
      case StmtKind::kContinue:
        return Flow::kContinue;
    }
    return Flow::kNormal;
  }

  void ExecuteSet(const Stmt& stmt) {
    const Value value = Evaluate(*stmt.expr);
    if (context_.failed()) return;
    if (stmt.member.empty()) {
      Unpack(stmt.names, value);
      return;
    }
    const Value target = Lookup(stmt.names[0]);
    Namespace* space = target.AsNamespace();
    if (space == nullptr) {
      context_.Fail(Cat("'", stmt.names[0], "' is no namespace, so its members cannot be set"));
    } else if (value.AsNamespace() != nullptr) {
      context_.Fail("a namespace cannot hold a namespace");
    } else if (context_.Charge(space->entries.size())) {
      space->Set(stmt.member, value);
    }
  }

  void ExecuteFor(const Stmt& stmt) {
    std::vector<Value> items = context_.Iterate(Evaluate(*stmt.expr));
    if (context_.failed()) return;
    scopes_.emplace_back();
    if (stmt.condition != nullptr) {
      std::vector<Value> kept;
      for (Value& item : items) {
        scopes_.back().clear();
        Unpack(stmt.names, item);
        const bool keep = Evaluate(*stmt.condition).IsTrue();
        if (!context_.Charge(1)) break;
        if (keep) kept.push_back(std::move(item));
      }
      items = std::move(kept);
    }
    auto list = std::make_shared<List>();
    list->items = std::move(items);
    const std::shared_ptr<const List> shared = std::move(list);
    for (size_t i = 0; i < shared->items.size() && context_.Charge(1); ++i) {
      auto loop = std::make_shared<Loop>();
      loop->items = shared;
      loop->index = i;
      scopes_.back().clear();
      Assign("loop", Value(std::shared_ptr<const Loop>(std::move(loop))));
      Unpack(stmt.names, shared->items[i]);
      if (context_.failed() || Execute(stmt.body) == Flow::kBreak) break;
    }
    scopes_.pop_back();
    if (shared->items.empty() && !context_.failed()) Execute(stmt.otherwise);
  }

  // The text of a block, through its filters.
  Value Capture(const Stmt& stmt) {
    std::string text;
    std::string* const outer = out_;
    out_ = &text;
    scopes_.emplace_back();
    Execute(stmt.body);
    scopes_.pop_back();
    out_ = outer;
    const Value captured = context_.Text(std::move(text));
    if (stmt.filters == nullptr) return captured;
    const Value before = filter_input_;
    filter_input_ = captured;
    const Value filtered = Evaluate(*stmt.filters);
    filter_input_ = before;
    return filtered;
  }

  Value CallMacro(const MacroNode& macro, const CallArgs& call) {
    const size_t count = macro.parameters.size();
    if (call.args.size() > count) {
      context_.Fail(Cat("macro '", macro.name, "' takes at most ", count, " arguments"));
      return Value();
    }
    Scope scope;
    for (size_t i = 0; i < call.args.size(); ++i) scope[macro.parameters[i]] = call.args[i];
    for (const auto& [name, value] : call.named) {
      const auto known = std::find(macro.parameters.begin(), macro.parameters.end(), name);
      if (known == macro.parameters.end() || !scope.try_emplace(name, value).second) {
        context_.Fail(Cat("macro '", macro.name, "' takes no argument '", name, "' here"));
        return Value();
      }
    }
    const size_t outer_base = scope_base_;
    std::string text;
    std::string* const outer = out_;
    scope_base_ = scopes_.size();
    scopes_.push_back(std::move(scope));
    out_ = &text;
    const size_t first_default = count - macro.defaults.size();
    for (size_t i = 0; i < count && !context_.failed(); ++i) {
      const std::string& name = macro.parameters[i];
      if (scopes_.back().contains(name)) continue;
      Assign(name, i < first_default ? Value::Missing(name)
                                     : Evaluate(*macro.defaults[i - first_default]));
    }
    Execute(macro.body);
    out_ = outer;
    scopes_.pop_back();
    scope_base_ = outer_base;
    return context_.Text(std::move(text));
  }

  // --- expressions ---

  Value Evaluate(const Expr& expr) {
    if (context_.failed() || !Deeper()) return Value();
    context_.set_line(expr.line);
    if (!context_.Charge(1)) return Value();
    ++depth_;
    Value value = EvaluateKind(expr);
    --depth_;
    return value;
  }

  Value EvaluateKind(const Expr& expr) {
    switch (expr.kind) {
      case ExprKind::kConstant:
        return expr.constant;
      case ExprKind::kName:
        return expr.text.empty() ? filter_input_ : Lookup(expr.text);
      case ExprKind::kList:
      case ExprKind::kTuple:
        return context_.Items(EvaluateAll(expr), expr.kind == ExprKind::kTuple);
      case ExprKind::kDict:
        return EvaluateDict(expr);
      case ExprKind::kMember:
        return context_.Member(Evaluate(*expr.args[0]), expr.text);
      case ExprKind::kIndex: {
        const Value container = Evaluate(*expr.args[0]);
        return context_.Item(container, Evaluate(*expr.args[1]));
      }
      case ExprKind::kSlice:
        return EvaluateSlice(expr);
      case ExprKind::kCall:
        return EvaluateCall(expr);
      case ExprKind::kFilter: {
        const Value input = Evaluate(*expr.args[0]);
        const CallArgs call = EvaluateArguments(expr);
        context_.set_line(expr.line);
        return context_.failed() ? Value() : ApplyFilter(expr.text, input, call, &context_);
      }
      case ExprKind::kTest: {
        const Value input = Evaluate(*expr.args[0]);
        const CallArgs call = EvaluateArguments(expr);
        context_.set_line(expr.line);
        return Value::Of(!context_.failed() && ApplyTest(expr.text, input, call, &context_));
      }
      case ExprKind::kNot:
        return Value::Of(!Evaluate(*expr.args[0]).IsTrue());
      case ExprKind::kNegate:
      case ExprKind::kPositive:
        return EvaluateSign(expr);
      case ExprKind::kAnd: {
        Value left = Evaluate(*expr.args[0]);
        return left.IsTrue() ? Evaluate(*expr.args[1]) : left;
      }
      case ExprKind::kOr: {
        Value left = Evaluate(*expr.args[0]);
        return left.IsTrue() ? left : Evaluate(*expr.args[1]);
      }
      case ExprKind::kArithmetic:
        return EvaluateArithmetic(expr);
      case ExprKind::kConcatenate: {
        std::string text = context_.Str(Evaluate(*expr.args[0]));
        text += context_.Str(Evaluate(*expr.args[1]));
        return context_.Text(std::move(text));
      }
      case ExprKind::kCompare:
        return EvaluateCompare(expr);
      case ExprKind::kConditional:
        if (Evaluate(*expr.args[0]).IsTrue()) return Evaluate(*expr.args[1]);
        return expr.args[2] == nullptr ? Value::Missing("the other branch of an if")
                                       : Evaluate(*expr.args[2]);
    }
    return Value();
  }

  std::vector<Value> EvaluateAll(const Expr& expr) {
    std::vector<Value> values;
    values.reserve(expr.args.size());
    for (const auto& arg : expr.args) values.push_back(Evaluate(*arg));
    return values;
  }

  CallArgs EvaluateArguments(const Expr& expr) {
    CallArgs call;
    for (size_t i = 1; i < expr.args.size(); ++i) call.args.push_back(Evaluate(*expr.args[i]));
    for (const auto& [name, value] : expr.named) call.named.emplace_back(name, Evaluate(*value));
    return call;
  }

  Value EvaluateDict(const Expr& expr) {
    std::vector<std::pair<std::string, Value>> entries;
    for (size_t i = 0; i + 1 < expr.args.size(); i += 2) {
      const Value key = Evaluate(*expr.args[i]);
      if (context_.failed()) return Value();
      if (key.AsString() == nullptr) {
        context_.Fail(Cat("a dictionary's key must be a string, not ", key.TypeName()));
        return Value();
      }
      entries.emplace_back(*key.AsString(), Evaluate(*expr.args[i + 1]));
    }
    return context_.Entries(std::move(entries));
  }

  // Python's slices: negative positions count from the end, everything is clamped.
  Value EvaluateSlice(const Expr& expr) {
    const Value container = Evaluate(*expr.args[0]);
    std::optional<int64_t> parts[3];
    for (size_t i = 0; i < 3; ++i) {
      if (expr.args[i + 1] == nullptr) continue;
      const Value part = Evaluate(*expr.args[i + 1]);
      if (!part.IsNone()) parts[i] = context_.Integer(part, "a slice's position");
    }
    if (const Undefined* undefined = container.As<Undefined>()) {
      context_.Fail(Cat("'", undefined->name, "' is undefined"));
    } else if (container.AsList() == nullptr && container.AsString() == nullptr) {
      context_.Fail(Cat("a value of type ", container.TypeName(), " cannot be sliced"));
    }
    const int64_t step = parts[2].value_or(1);
    if (step == 0) context_.Fail("a slice's step is 0");
    if (context_.failed()) return Value();

    const std::vector<Value> items = context_.Iterate(container);
    const auto size = static_cast<int64_t>(items.size());
    const int64_t lowest = step > 0 ? 0 : -1;
    const int64_t highest = step > 0 ? size : size - 1;
    const auto position = [&](const std::optional<int64_t>& part, int64_t fallback) {
      if (!part.has_value()) return fallback;
      const int64_t from_start = *part < 0 ? *part + size : *part;
      return std::clamp(from_start, lowest, highest);
    };
    int64_t at = position(parts[0], step > 0 ? lowest : highest);
    const int64_t end = position(parts[1], step > 0 ? highest : lowest);
    std::vector<Value> taken;
    while (step > 0 ? at < end : at > end) {
      taken.push_back(items[static_cast<size_t>(at)]);
      // The rest is shorter than any step beyond it.
      if (step > size || step < -size) break;
      at += step;
    }
    if (container.AsList() != nullptr) {
      return context_.Items(std::move(taken), container.AsList()->tuple);
    }
    std::string text;
    for (const Value& character : taken) text += *character.AsString();
    return context_.Text(std::move(text));
  }

  Value EvaluateSign(const Expr& expr) {
    const Value value = Evaluate(*expr.args[0]);
    const bool negate = expr.kind == ExprKind::kNegate;
    if (const double* d = value.As<double>()) return Value::Of(negate ? -*d : *d);
    const int64_t i = context_.Integer(value, "the operand of a sign");
    if (i == INT64_MIN) context_.Fail("integer overflow");
    return context_.failed() ? Value() : Value::Of(negate ? -i : i);
  }

  Value EvaluateCompare(const Expr& expr) {
    Value left = Evaluate(*expr.args[0]);
    for (size_t i = 0; i < expr.ops.size(); ++i) {
      Value right = Evaluate(*expr.args[i + 1]);
      if (context_.failed() || !CompareOnce(left, expr.ops[i], right)) return Value::Of(false);
      left = std::move(right);
    }
    return Value::Of(true);
  }

  bool CompareOnce(const Value& a, const std::string& op, const Value& b) {
    if (op == "==") return context_.Equal(a, b);
    if (op == "!=") return !context_.Equal(a, b);
    if (op == "in") return context_.Contains(b, a);
    if (op == "not in") return !context_.Contains(b, a);
    if (op == "<") return context_.Less(a, b);
    if (op == ">") return context_.Less(b, a);
    if (op == "<=") return !context_.Less(b, a);
    return !context_.Less(a, b);
  }

  Value EvaluateArithmetic(const Expr& expr) {
    const Value a = Evaluate(*expr.args[0]);
    const Value b = Evaluate(*expr.args[1]);
    if (context_.failed()) return Value();
    context_.set_line(expr.line);
    return Arithmetic(a, expr.text, b, &context_);
  }

  // --- calls ---

  Value EvaluateCall(const Expr& expr) {
    const Expr& callee = *expr.args[0];
    if (callee.kind == ExprKind::kMember) {
      const Value receiver = Evaluate(*callee.args[0]);
      if (const Undefined* undefined = receiver.As<Undefined>()) {
        context_.Fail(Cat("'", undefined->name, "' is undefined"));
        return Value();
      }
      if (receiver.AsNamespace() == nullptr) {
        const CallArgs call = EvaluateArguments(expr);
        context_.set_line(expr.line);
        if (context_.failed()) return Value();
        if (receiver.AsLoop() != nullptr) return CallLoop(*receiver.AsLoop(), callee.text, call);
        return CallMethod(receiver, callee.text, call, &context_);
      }
    }
    const Value function = Evaluate(callee);
    const CallArgs call = EvaluateArguments(expr);
    context_.set_line(expr.line);
    if (context_.failed()) return Value();
    if (const auto* macro = function.As<const MacroNode*>()) return CallMacro(**macro, call);
    const auto* const builtin = function.As<Function>();
    if (builtin != nullptr) return CallFunction(*builtin, call, now_, &context_);
    if (const Undefined* undefined = function.As<Undefined>()) {
      context_.Fail(Cat("'", undefined->name, "' is undefined"));
    } else {
      context_.Fail(Cat("a value of type ", function.TypeName(), " cannot be called"));
    }
    return Value();
  }

  Value CallLoop(const Loop& loop, const std::string& name, const CallArgs& call) {
    if (name == "cycle" && !call.args.empty()) return call.args[loop.index % call.args.size()];
    context_.Fail(Cat("loop.", name, "() is not supported"));
    return Value();
  }

  Context context_;
  const std::optional<int64_t> now_;
  std::vector<Scope> scopes_;
  size_t scope_base_ = 0;
  int depth_ = 0;
  std::string* out_ = nullptr;
  Value filter_input_;
};

}  // namespace

absl::StatusOr<std::string> RenderTemplate(const Template& parsed,
                                           std::vector<std::pair<std::string, Value>> variables,
                                           std::optional<int64_t> now) {
  return Interpreter(now).Run(parsed, std::move(variables));
}

}  // namespace nibble::jinja
