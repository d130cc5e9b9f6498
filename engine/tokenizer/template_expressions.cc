// SPDX-License-Identifier: Apache-2.0
#include "engine/tokenizer/template_expressions.h"

#include <algorithm>
#include <charconv>
#include <string>
#include <utility>

#include "engine/base/cat.h"

namespace nibble::jinja {
namespace {

using ExprPtr = std::unique_ptr<Expr>;

// Recursive descent after the grammar of Jinja 3.1's parser.py, loosest binding first.
class ExpressionParser {
 public:
  explicit ExpressionParser(TokenReader* tokens) : tokens_(*tokens) {}

  ExprPtr ParseTuple(bool with_conditional) {
    const int line = tokens_.Peek().line;
    ExprPtr first = with_conditional ? ParseExpression() : ParseOr();
    if (!tokens_.IsOperator(",")) return first;
    ExprPtr tuple = NewExpr(ExprKind::kTuple, line, "", std::move(first));
    while (tokens_.ok() && tokens_.TakeOperator(",")) {
      const TokenKind kind = tokens_.Peek().kind;
      if (kind == TokenKind::kVariableEnd || kind == TokenKind::kBlockEnd ||
          tokens_.IsOperator(")"))
        break;
      AddArg(tuple.get(), with_conditional ? ParseExpression() : ParseOr());
    }
    return tuple;
  }

  ExprPtr ParseExpression() {
    const TokenReader::Nested nested(&tokens_);
    if (!tokens_.ok()) return NewExpr(ExprKind::kName, 0, "");
    ExprPtr value = ParseOr();
    while (tokens_.ok() && tokens_.IsName("if")) {
      const int line = tokens_.Next().line;
      ExprPtr condition = ParseOr();
      ExprPtr otherwise = tokens_.TakeName("else") ? ParseExpression() : nullptr;
      value = NewExpr(ExprKind::kConditional, line, "", std::move(condition), std::move(value),
                      std::move(otherwise));
    }
    return value;
  }

  ExprPtr ParseBlockFilters(bool first_bar) {
    ExprPtr value = NewExpr(ExprKind::kName, tokens_.Peek().line, "");
    if (!first_bar) value = ParseFilter(std::move(value));
    while (tokens_.ok() && tokens_.TakeOperator("|")) value = ParseFilter(std::move(value));
    return value;
  }

 private:
  template <typename... Args>
  ExprPtr NewExpr(ExprKind kind, int line, std::string text, Args... args) {
    auto expr = std::make_unique<Expr>();
    expr->kind = kind;
    expr->line = line;
    expr->text = std::move(text);
    (AddArg(expr.get(), std::move(args)), ...);
    return expr;
  }

  void AddArg(Expr* expr, ExprPtr arg) {
    if (arg != nullptr) Deepen(expr, *arg);
    expr->args.push_back(std::move(arg));
  }

  // Long chains (a + b + c ...) nest without recursion here; whoever walks them recurses.
  void Deepen(Expr* expr, const Expr& child) {
    expr->depth = std::max(expr->depth, child.depth + 1);
    if (expr->depth > kMaxTemplateDepth) {
      tokens_.FailAt(expr->line,
                     Cat("an expression is nested more than ", kMaxTemplateDepth, " deep"));
    }
  }

  ExprPtr ParseOr() {
    ExprPtr left = ParseAnd();
    while (tokens_.ok() && tokens_.IsName("or")) {
      const int line = tokens_.Next().line;
      left = NewExpr(ExprKind::kOr, line, "", std::move(left), ParseAnd());
    }
    return left;
  }

  ExprPtr ParseAnd() {
    ExprPtr left = ParseNot();
    while (tokens_.ok() && tokens_.IsName("and")) {
      const int line = tokens_.Next().line;
      left = NewExpr(ExprKind::kAnd, line, "", std::move(left), ParseNot());
    }
    return left;
  }

  ExprPtr ParseNot() {
    if (!tokens_.IsName("not")) return ParseCompare();
    const TokenReader::Nested nested(&tokens_);
    const int line = tokens_.Next().line;
    if (!tokens_.ok()) return NewExpr(ExprKind::kName, 0, "");
    return NewExpr(ExprKind::kNot, line, "", ParseNot());
  }

  bool TakeComparison(std::string* op) {
    for (const std::string_view text : {"==", "!=", "<", "<=", ">", ">="}) {
      if (tokens_.TakeOperator(text)) {
        *op = std::string(text);
        return true;
      }
    }
    if (tokens_.TakeName("in")) {
      *op = "in";
      return true;
    }
    if (tokens_.IsName("not") && tokens_.Peek(1).kind == TokenKind::kName &&
        tokens_.Peek(1).text == "in") {
      tokens_.Next();
      tokens_.Next();
      *op = "not in";
      return true;
    }
    return false;
  }

  ExprPtr ParseCompare() {
    const int line = tokens_.Peek().line;
    ExprPtr first = ParseSum();
    std::string op;
    if (!TakeComparison(&op)) return first;
    ExprPtr compare = NewExpr(ExprKind::kCompare, line, "", std::move(first));
    do {
      compare->ops.push_back(op);
      AddArg(compare.get(), ParseSum());
    } while (tokens_.ok() && TakeComparison(&op));
    return compare;
  }

  ExprPtr ParseSum() {
    ExprPtr left = ParseConcatenation();
    while (tokens_.ok() && (tokens_.IsOperator("+") || tokens_.IsOperator("-"))) {
      const Token op = tokens_.Next();
      left =
          NewExpr(ExprKind::kArithmetic, op.line, op.text, std::move(left), ParseConcatenation());
    }
    return left;
  }

  ExprPtr ParseConcatenation() {
    ExprPtr left = ParseProduct();
    while (tokens_.ok() && tokens_.IsOperator("~")) {
      const int line = tokens_.Next().line;
      left = NewExpr(ExprKind::kConcatenate, line, "", std::move(left), ParseProduct());
    }
    return left;
  }

  ExprPtr ParseProduct() {
    ExprPtr left = ParsePower();
    while (tokens_.ok() && (tokens_.IsOperator("*") || tokens_.IsOperator("/") ||
                            tokens_.IsOperator("//") || tokens_.IsOperator("%"))) {
      const Token op = tokens_.Next();
      left = NewExpr(ExprKind::kArithmetic, op.line, op.text, std::move(left), ParsePower());
    }
    return left;
  }

  ExprPtr ParsePower() {
    ExprPtr left = ParseUnary(/*with_filters=*/true);
    while (tokens_.ok() && tokens_.IsOperator("**")) {
      const int line = tokens_.Next().line;
      left = NewExpr(ExprKind::kArithmetic, line, "**", std::move(left), ParseUnary(true));
    }
    return left;
  }

  ExprPtr ParseUnary(bool with_filters) {
    const TokenReader::Nested nested(&tokens_);
    if (!tokens_.ok()) return NewExpr(ExprKind::kName, 0, "");
    ExprPtr value;
    if (tokens_.IsOperator("-") || tokens_.IsOperator("+")) {
      const Token op = tokens_.Next();
      value = NewExpr(op.text == "-" ? ExprKind::kNegate : ExprKind::kPositive, op.line, "",
                      ParseUnary(/*with_filters=*/false));
    } else {
      value = ParsePrimary();
    }
    value = ParsePostfix(std::move(value));
    return with_filters ? ParseFiltersAndTests(std::move(value)) : std::move(value);
  }

  ExprPtr ParseConstant(Value constant, int line) {
    ExprPtr expr = NewExpr(ExprKind::kConstant, line, "");
    expr->constant = std::move(constant);
    return expr;
  }

  ExprPtr ParsePrimary() {
    const Token token = tokens_.Peek();
    switch (token.kind) {
      case TokenKind::kName:
        tokens_.Next();
        if (token.text == "true" || token.text == "True") {
          return ParseConstant(Value::Of(true), token.line);
        }
        if (token.text == "false" || token.text == "False") {
          return ParseConstant(Value::Of(false), token.line);
        }
        if (token.text == "none" || token.text == "None") {
          return ParseConstant(Value::OfNone(), token.line);
        }
        return NewExpr(ExprKind::kName, token.line, token.text);
      case TokenKind::kString: {
        std::string text;
        while (tokens_.Peek().kind == TokenKind::kString) text += tokens_.Next().text;
        return ParseConstant(Value::Of(std::move(text)), token.line);
      }
      case TokenKind::kInteger:
      case TokenKind::kFloat:
        tokens_.Next();
        return ParseNumber(token);
      default:
        break;
    }
    if (tokens_.TakeOperator("(")) {
      if (tokens_.TakeOperator(")")) return NewExpr(ExprKind::kTuple, token.line, "");
      ExprPtr inner = ParseTuple(/*with_conditional=*/true);
      tokens_.Expect(")");
      return inner;
    }
    if (tokens_.TakeOperator("[")) {
      ExprPtr list = NewExpr(ExprKind::kList, token.line, "");
      while (tokens_.ok() && !tokens_.IsOperator("]")) {
        AddArg(list.get(), ParseExpression());
        if (!tokens_.TakeOperator(",")) break;
      }
      tokens_.Expect("]");
      return list;
    }
    if (tokens_.TakeOperator("{")) {
      ExprPtr dict = NewExpr(ExprKind::kDict, token.line, "");
      while (tokens_.ok() && !tokens_.IsOperator("}")) {
        AddArg(dict.get(), ParseExpression());
        tokens_.Expect(":");
        AddArg(dict.get(), ParseExpression());
        if (!tokens_.TakeOperator(",")) break;
      }
      tokens_.Expect("}");
      return dict;
    }
    tokens_.Fail(Cat("expected an expression, found ", TokenReader::Describe(token)));
    return NewExpr(ExprKind::kName, token.line, "");
  }

  ExprPtr ParseNumber(const Token& token) {
    const char* begin = token.text.data();
    const char* end = begin + token.text.size();
    if (token.kind == TokenKind::kInteger) {
      int64_t value = 0;
      if (std::from_chars(begin, end, value).ec == std::errc()) {
        return ParseConstant(Value::Of(value), token.line);
      }
    } else {
      double value = 0;
      if (std::from_chars(begin, end, value).ec == std::errc()) {
        return ParseConstant(Value::Of(value), token.line);
      }
    }
    tokens_.FailAt(token.line, Cat("the number ", token.text.substr(0, 40), " is out of range"));
    return NewExpr(ExprKind::kName, token.line, "");
  }

  ExprPtr ParsePostfix(ExprPtr value) {
    while (tokens_.ok()) {
      const int line = tokens_.Peek().line;
      if (tokens_.TakeOperator(".")) {
        if (tokens_.Peek().kind == TokenKind::kInteger) {
          ExprPtr index = ParseNumber(tokens_.Next());
          value = NewExpr(ExprKind::kIndex, line, "", std::move(value), std::move(index));
        } else {
          std::string name = tokens_.ExpectName();
          value = NewExpr(ExprKind::kMember, line, std::move(name), std::move(value));
        }
      } else if (tokens_.TakeOperator("[")) {
        value = ParseSubscript(std::move(value), line);
      } else if (tokens_.IsOperator("(")) {
        ExprPtr call = NewExpr(ExprKind::kCall, line, "", std::move(value));
        ParseArguments(call.get());
        value = std::move(call);
      } else {
        break;
      }
    }
    return value;
  }

  ExprPtr ParseSubscript(ExprPtr value, int line) {
    ExprPtr parts[3];
    size_t part = 0;
    bool is_slice = false;
    while (tokens_.ok() && !tokens_.IsOperator("]")) {
      if (tokens_.TakeOperator(":")) {
        is_slice = true;
        if (++part > 2) tokens_.Fail("a slice has more than three parts");
        continue;
      }
      parts[std::min<size_t>(part, 2)] = ParseExpression();
      if (!tokens_.IsOperator(":")) break;
    }
    tokens_.Expect("]");
    if (is_slice) {
      return NewExpr(ExprKind::kSlice, line, "", std::move(value), std::move(parts[0]),
                     std::move(parts[1]), std::move(parts[2]));
    }
    if (parts[0] == nullptr) {
      tokens_.FailAt(line, "an index is empty");
      return value;
    }
    return NewExpr(ExprKind::kIndex, line, "", std::move(value), std::move(parts[0]));
  }

  void ParseArguments(Expr* call) {
    tokens_.Expect("(");
    while (tokens_.ok() && !tokens_.IsOperator(")")) {
      if (tokens_.IsOperator("*") || tokens_.IsOperator("**"))
        tokens_.Fail("* and ** arguments are not supported");
      if (tokens_.Peek().kind == TokenKind::kName && tokens_.Peek(1).kind == TokenKind::kOperator &&
          tokens_.Peek(1).text == "=") {
        std::string name = tokens_.Next().text;
        tokens_.Next();
        ExprPtr value = ParseExpression();
        Deepen(call, *value);
        call->named.emplace_back(std::move(name), std::move(value));
      } else {
        if (!call->named.empty()) tokens_.Fail("a positional argument follows a named one");
        AddArg(call, ParseExpression());
      }
      if (!tokens_.TakeOperator(",")) break;
    }
    tokens_.Expect(")");
  }

  ExprPtr ParseFiltersAndTests(ExprPtr value) {
    while (tokens_.ok()) {
      if (tokens_.TakeOperator("|")) {
        value = ParseFilter(std::move(value));
      } else if (tokens_.TakeName("is")) {
        value = ParseTest(std::move(value));
      } else if (tokens_.IsOperator("(")) {
        ExprPtr call = NewExpr(ExprKind::kCall, tokens_.Peek().line, "", std::move(value));
        ParseArguments(call.get());
        value = std::move(call);
      } else {
        break;
      }
    }
    return value;
  }

  ExprPtr ParseTest(ExprPtr value) {
    const int line = tokens_.Peek().line;
    const bool negated = tokens_.TakeName("not");
    std::string name = tokens_.ExpectName();
    ExprPtr test = NewExpr(ExprKind::kTest, line, std::move(name), std::move(value));
    const Token& next = tokens_.Peek();
    const bool literal = next.kind == TokenKind::kString || next.kind == TokenKind::kInteger ||
                         next.kind == TokenKind::kFloat || tokens_.IsOperator("[") ||
                         tokens_.IsOperator("{");
    const bool name_argument =
        next.kind == TokenKind::kName && !tokens_.IsName("else") && !tokens_.IsName("or") &&
        !tokens_.IsName("and") && !tokens_.IsName("if") && !tokens_.IsName("is") &&
        !tokens_.IsName("in") && !tokens_.IsName("not") && !tokens_.IsName("recursive");
    if (tokens_.IsOperator("(")) {
      ParseArguments(test.get());
    } else if (literal || name_argument) {
      AddArg(test.get(), ParsePostfix(ParsePrimary()));
    }
    return negated ? NewExpr(ExprKind::kNot, line, "", std::move(test)) : std::move(test);
  }

  // Behind a '|': a filter's name and arguments.
  ExprPtr ParseFilter(ExprPtr value) {
    const int line = tokens_.Peek().line;
    std::string name = tokens_.ExpectName();
    while (tokens_.ok() && tokens_.TakeOperator(".")) name += Cat(".", tokens_.ExpectName());
    ExprPtr filter = NewExpr(ExprKind::kFilter, line, std::move(name), std::move(value));
    if (tokens_.IsOperator("(")) ParseArguments(filter.get());
    return filter;
  }

  TokenReader& tokens_;
};

}  // namespace

std::unique_ptr<Expr> ParseExpression(TokenReader* tokens) {
  return ExpressionParser(tokens).ParseExpression();
}

std::unique_ptr<Expr> ParseTuple(TokenReader* tokens, bool with_conditional) {
  return ExpressionParser(tokens).ParseTuple(with_conditional);
}

std::unique_ptr<Expr> ParseBlockFilters(TokenReader* tokens, bool first_bar) {
  return ExpressionParser(tokens).ParseBlockFilters(first_bar);
}

}  // namespace nibble::jinja
