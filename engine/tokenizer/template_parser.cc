// SPDX-License-Identifier: Apache-2.0
#include "engine/tokenizer/template_parser.h"

#include <algorithm>
#include <charconv>
#include <initializer_list>

#include "absl/status/status.h"
#include "engine/base/cat.h"
#include "engine/tokenizer/template_lexer.h"

namespace nibble::jinja {
namespace {

constexpr size_t kMaxSourceBytes = size_t{256} << 10;
constexpr int kMaxDepth = 100;

using ExprPtr = std::unique_ptr<Expr>;

// Recursive descent after the grammar of Jinja 3.1's parser.py. The first error is kept and the
// token position jumps to the end, so that every loop stops.
class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  absl::StatusOr<std::shared_ptr<const Template>> Run() {
    auto result = std::make_shared<Template>();
    result->body = ParseBlock({});
    if (status_.ok() && Peek().kind != TokenKind::kEnd) Fail("unexpected end of a block");
    if (!status_.ok()) return status_;
    return std::shared_ptr<const Template>(std::move(result));
  }

 private:
  const Token& Peek(size_t ahead = 0) const {
    return tokens_[std::min(pos_ + ahead, tokens_.size() - 1)];
  }
  Token Next() {
    Token token = Peek();
    if (pos_ + 1 < tokens_.size()) ++pos_;
    return token;
  }
  bool IsOperator(std::string_view text) const {
    return Peek().kind == TokenKind::kOperator && Peek().text == text;
  }
  bool IsName(std::string_view text) const {
    return Peek().kind == TokenKind::kName && Peek().text == text;
  }
  bool TakeOperator(std::string_view text) {
    if (!IsOperator(text)) return false;
    Next();
    return true;
  }
  bool TakeName(std::string_view text) {
    if (!IsName(text)) return false;
    Next();
    return true;
  }

  void Fail(std::string_view problem) { FailAt(Peek().line, problem); }
  void FailAt(int line, std::string_view problem) {
    if (status_.ok()) {
      status_ = absl::InvalidArgumentError(Cat("chat template line ", line, ": ", problem));
    }
    pos_ = tokens_.size() - 1;
  }
  static std::string Describe(const Token& token) {
    switch (token.kind) {
      case TokenKind::kText:
        return "text";
      case TokenKind::kVariableBegin:
        return "'{{'";
      case TokenKind::kVariableEnd:
        return "'}}'";
      case TokenKind::kBlockBegin:
        return "'{%'";
      case TokenKind::kBlockEnd:
        return "'%}'";
      case TokenKind::kEnd:
        return "the end of the template";
      default:
        return Cat("'", token.text.substr(0, 40), "'");
    }
  }
  void Expect(std::string_view op) {
    if (!TakeOperator(op)) Fail(Cat("expected '", op, "', found ", Describe(Peek())));
  }
  void ExpectBlockEnd() {
    if (Peek().kind == TokenKind::kBlockEnd) {
      Next();
    } else {
      Fail(Cat("expected '%}', found ", Describe(Peek())));
    }
  }
  std::string ExpectName() {
    if (Peek().kind != TokenKind::kName) {
      Fail(Cat("expected a name, found ", Describe(Peek())));
      return "";
    }
    return Next().text;
  }

  // Counts how deep statements and expressions nest while in scope.
  class Nested {
   public:
    explicit Nested(Parser* parser) : parser_(parser) {
      if (++parser_->depth_ > kMaxDepth) {
        parser_->Fail(Cat("nested more than ", kMaxDepth, " deep"));
      }
    }
    ~Nested() { --parser_->depth_; }
    Nested(const Nested&) = delete;
    Nested& operator=(const Nested&) = delete;

   private:
    Parser* parser_;
  };

  // --- statements ---

  // Up to a block that begins with one of `ends`, which is left for the caller: its "{%" and name
  // are consumed and the name is in ended_by_. With no `ends`, up to the end of the template.
  Block ParseBlock(std::initializer_list<std::string_view> ends) {
    const Nested nested(this);
    Block block;
    const int opened = Peek().line;
    while (status_.ok()) {
      const Token token = Peek();
      if (token.kind == TokenKind::kEnd) {
        if (ends.size() > 0) FailAt(opened, Cat("a block has no {% ", *(ends.end() - 1), " %}"));
        break;
      }
      Next();
      if (token.kind == TokenKind::kText) {
        block.push_back(NewStmt(StmtKind::kText, token.line));
        block.back()->text = token.text;
      } else if (token.kind == TokenKind::kVariableBegin) {
        block.push_back(NewStmt(StmtKind::kOutput, token.line));
        block.back()->expr = ParseTupleOrExpression();
        if (Peek().kind == TokenKind::kVariableEnd) {
          Next();
        } else {
          Fail(Cat("expected '}}', found ", Describe(Peek())));
        }
      } else {
        const std::string keyword = ExpectName();
        if (std::find(ends.begin(), ends.end(), keyword) != ends.end()) {
          ended_by_ = keyword;
          return block;
        }
        if (std::unique_ptr<Stmt> stmt = ParseStatement(keyword, token.line)) {
          block.push_back(std::move(stmt));
        }
      }
    }
    return block;
  }

  static std::unique_ptr<Stmt> NewStmt(StmtKind kind, int line) {
    auto stmt = std::make_unique<Stmt>();
    stmt->kind = kind;
    stmt->line = line;
    return stmt;
  }

  std::unique_ptr<Stmt> ParseStatement(const std::string& keyword, int line) {
    if (keyword == "if") return ParseIf(line);
    if (keyword == "for") return ParseFor(line);
    if (keyword == "set") return ParseSet(line);
    if (keyword == "macro") return ParseMacro(line);
    if (keyword == "with") return ParseWith(line);
    if (keyword == "filter") return ParseFilterBlock(line);
    if (keyword == "generation") {
      auto stmt = NewStmt(StmtKind::kScope, line);
      ExpectBlockEnd();
      stmt->body = ParseBlock({"endgeneration"});
      ExpectBlockEnd();
      return stmt;
    }
    if (keyword == "break" || keyword == "continue") {
      if (loop_depth_ == 0) FailAt(line, Cat("{% ", keyword, " %} outside of a loop"));
      ExpectBlockEnd();
      return NewStmt(keyword == "break" ? StmtKind::kBreak : StmtKind::kContinue, line);
    }
    FailAt(line, Cat("statement '", keyword.substr(0, 40),
                     "' is not supported; supported are if, for, set, macro, with, filter, "
                     "raw, break, continue, generation"));
    return nullptr;
  }

  std::unique_ptr<Stmt> ParseIf(int line) {
    auto stmt = NewStmt(StmtKind::kIf, line);
    ended_by_ = "elif";
    while (status_.ok() && ended_by_ == "elif") {
      ExprPtr condition = ParseTupleOrExpression();
      ExpectBlockEnd();
      Block body = ParseBlock({"elif", "else", "endif"});
      stmt->branches.emplace_back(std::move(condition), std::move(body));
    }
    if (status_.ok() && ended_by_ == "else") {
      ExpectBlockEnd();
      stmt->branches.emplace_back(nullptr, ParseBlock({"endif"}));
    }
    ExpectBlockEnd();
    return stmt;
  }

  std::unique_ptr<Stmt> ParseFor(int line) {
    auto stmt = NewStmt(StmtKind::kFor, line);
    stmt->names = ParseTargets();
    if (!TakeName("in")) Fail(Cat("expected 'in', found ", Describe(Peek())));
    // The ternary's "if" would swallow the loop's filter.
    stmt->expr = ParseTuple(/*with_condition=*/false);
    if (TakeName("if")) stmt->condition = ParseExpression();
    if (IsName("recursive")) Fail("recursive loops are not supported");
    ExpectBlockEnd();
    ++loop_depth_;
    stmt->body = ParseBlock({"else", "endfor"});
    --loop_depth_;
    if (status_.ok() && ended_by_ == "else") {
      ExpectBlockEnd();
      stmt->otherwise = ParseBlock({"endfor"});
    }
    ExpectBlockEnd();
    return stmt;
  }

  std::vector<std::string> ParseTargets() {
    std::vector<std::string> names;
    const bool parenthesis = TakeOperator("(");
    do {
      if (!names.empty() && Peek().kind != TokenKind::kName) break;  // a trailing comma
      names.push_back(ExpectName());
    } while (status_.ok() && TakeOperator(","));
    if (parenthesis) Expect(")");
    return names;
  }

  std::unique_ptr<Stmt> ParseSet(int line) {
    auto stmt = NewStmt(StmtKind::kSet, line);
    stmt->names = ParseTargets();
    if (stmt->names.size() == 1 && TakeOperator(".")) stmt->member = ExpectName();
    if (TakeOperator("=")) {
      stmt->expr = ParseTupleOrExpression();
      ExpectBlockEnd();
      return stmt;
    }
    stmt->kind = StmtKind::kSetBlock;
    if (stmt->names.size() != 1 || !stmt->member.empty()) Fail("a block can set one name only");
    if (IsOperator("|")) stmt->filters = ParseFilterChain(NewExpr(ExprKind::kName, line, {}));
    ExpectBlockEnd();
    stmt->body = ParseBlock({"endset"});
    ExpectBlockEnd();
    return stmt;
  }

  std::unique_ptr<Stmt> ParseMacro(int line) {
    auto stmt = NewStmt(StmtKind::kMacro, line);
    stmt->macro = std::make_unique<MacroNode>();
    stmt->macro->name = ExpectName();
    Expect("(");
    while (status_.ok() && !IsOperator(")")) {
      stmt->macro->parameters.push_back(ExpectName());
      if (TakeOperator("=")) {
        stmt->macro->defaults.push_back(ParseExpression());
      } else if (!stmt->macro->defaults.empty()) {
        Fail("a parameter without default follows one with a default");
      }
      if (!TakeOperator(",")) break;
    }
    Expect(")");
    ExpectBlockEnd();
    const int outer_loops = loop_depth_;
    loop_depth_ = 0;
    stmt->macro->body = ParseBlock({"endmacro"});
    loop_depth_ = outer_loops;
    TakeName(stmt->macro->name);
    ExpectBlockEnd();
    return stmt;
  }

  std::unique_ptr<Stmt> ParseWith(int line) {
    auto stmt = NewStmt(StmtKind::kWith, line);
    while (status_.ok() && Peek().kind == TokenKind::kName) {
      std::string name = ExpectName();
      Expect("=");
      stmt->assignments.emplace_back(std::move(name), ParseExpression());
      if (!TakeOperator(",")) break;
    }
    ExpectBlockEnd();
    stmt->body = ParseBlock({"endwith"});
    ExpectBlockEnd();
    return stmt;
  }

  std::unique_ptr<Stmt> ParseFilterBlock(int line) {
    auto stmt = NewStmt(StmtKind::kFilterBlock, line);
    ExprPtr chain = ParseFilter(NewExpr(ExprKind::kName, line, {}));
    stmt->filters = ParseFilterChain(std::move(chain));
    ExpectBlockEnd();
    stmt->body = ParseBlock({"endfilter"});
    ExpectBlockEnd();
    return stmt;
  }

  // --- expressions, loosest first ---

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
    if (expr->depth > kMaxDepth) {
      FailAt(expr->line, Cat("an expression is nested more than ", kMaxDepth, " deep"));
    }
  }

  ExprPtr ParseTupleOrExpression() { return ParseTuple(/*with_condition=*/true); }

  ExprPtr ParseTuple(bool with_condition) {
    const int line = Peek().line;
    ExprPtr first = with_condition ? ParseExpression() : ParseOr();
    if (!IsOperator(",")) return first;
    ExprPtr tuple = NewExpr(ExprKind::kTuple, line, "", std::move(first));
    while (status_.ok() && TakeOperator(",")) {
      const TokenKind kind = Peek().kind;
      if (kind == TokenKind::kVariableEnd || kind == TokenKind::kBlockEnd || IsOperator(")")) break;
      AddArg(tuple.get(), with_condition ? ParseExpression() : ParseOr());
    }
    return tuple;
  }

  ExprPtr ParseExpression() {
    const Nested nested(this);
    if (!status_.ok()) return NewExpr(ExprKind::kName, 0, "");
    ExprPtr value = ParseOr();
    while (status_.ok() && IsName("if")) {
      const int line = Next().line;
      ExprPtr condition = ParseOr();
      ExprPtr otherwise = TakeName("else") ? ParseExpression() : nullptr;
      value = NewExpr(ExprKind::kConditional, line, "", std::move(condition), std::move(value),
                      std::move(otherwise));
    }
    return value;
  }

  ExprPtr ParseOr() {
    ExprPtr left = ParseAnd();
    while (status_.ok() && IsName("or")) {
      const int line = Next().line;
      left = NewExpr(ExprKind::kOr, line, "", std::move(left), ParseAnd());
    }
    return left;
  }

  ExprPtr ParseAnd() {
    ExprPtr left = ParseNot();
    while (status_.ok() && IsName("and")) {
      const int line = Next().line;
      left = NewExpr(ExprKind::kAnd, line, "", std::move(left), ParseNot());
    }
    return left;
  }

  ExprPtr ParseNot() {
    if (!IsName("not")) return ParseCompare();
    const Nested nested(this);
    const int line = Next().line;
    if (!status_.ok()) return NewExpr(ExprKind::kName, 0, "");
    return NewExpr(ExprKind::kNot, line, "", ParseNot());
  }

  bool TakeComparison(std::string* op) {
    for (const std::string_view text : {"==", "!=", "<", "<=", ">", ">="}) {
      if (TakeOperator(text)) {
        *op = std::string(text);
        return true;
      }
    }
    if (TakeName("in")) {
      *op = "in";
      return true;
    }
    if (IsName("not") && Peek(1).kind == TokenKind::kName && Peek(1).text == "in") {
      Next();
      Next();
      *op = "not in";
      return true;
    }
    return false;
  }

  ExprPtr ParseCompare() {
    const int line = Peek().line;
    ExprPtr first = ParseSum();
    std::string op;
    if (!TakeComparison(&op)) return first;
    ExprPtr compare = NewExpr(ExprKind::kCompare, line, "", std::move(first));
    do {
      compare->ops.push_back(op);
      AddArg(compare.get(), ParseSum());
    } while (status_.ok() && TakeComparison(&op));
    return compare;
  }

  ExprPtr ParseSum() {
    ExprPtr left = ParseConcatenation();
    while (status_.ok() && (IsOperator("+") || IsOperator("-"))) {
      const Token op = Next();
      left =
          NewExpr(ExprKind::kArithmetic, op.line, op.text, std::move(left), ParseConcatenation());
    }
    return left;
  }

  ExprPtr ParseConcatenation() {
    ExprPtr left = ParseProduct();
    while (status_.ok() && IsOperator("~")) {
      const int line = Next().line;
      left = NewExpr(ExprKind::kConcatenate, line, "", std::move(left), ParseProduct());
    }
    return left;
  }

  ExprPtr ParseProduct() {
    ExprPtr left = ParsePower();
    while (status_.ok() &&
           (IsOperator("*") || IsOperator("/") || IsOperator("//") || IsOperator("%"))) {
      const Token op = Next();
      left = NewExpr(ExprKind::kArithmetic, op.line, op.text, std::move(left), ParsePower());
    }
    return left;
  }

  ExprPtr ParsePower() {
    ExprPtr left = ParseUnary(/*with_filters=*/true);
    while (status_.ok() && IsOperator("**")) {
      const int line = Next().line;
      left = NewExpr(ExprKind::kArithmetic, line, "**", std::move(left), ParseUnary(true));
    }
    return left;
  }

  ExprPtr ParseUnary(bool with_filters) {
    const Nested nested(this);
    if (!status_.ok()) return NewExpr(ExprKind::kName, 0, "");
    ExprPtr value;
    if (IsOperator("-") || IsOperator("+")) {
      const Token op = Next();
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
    const Token token = Peek();
    switch (token.kind) {
      case TokenKind::kName:
        Next();
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
        while (Peek().kind == TokenKind::kString) text += Next().text;
        return ParseConstant(Value::Of(std::move(text)), token.line);
      }
      case TokenKind::kInteger:
      case TokenKind::kFloat:
        Next();
        return ParseNumber(token);
      default:
        break;
    }
    if (TakeOperator("(")) {
      if (TakeOperator(")")) return NewExpr(ExprKind::kTuple, token.line, "");
      ExprPtr inner = ParseTupleOrExpression();
      Expect(")");
      return inner;
    }
    if (TakeOperator("[")) {
      ExprPtr list = NewExpr(ExprKind::kList, token.line, "");
      while (status_.ok() && !IsOperator("]")) {
        AddArg(list.get(), ParseExpression());
        if (!TakeOperator(",")) break;
      }
      Expect("]");
      return list;
    }
    if (TakeOperator("{")) {
      ExprPtr dict = NewExpr(ExprKind::kDict, token.line, "");
      while (status_.ok() && !IsOperator("}")) {
        AddArg(dict.get(), ParseExpression());
        Expect(":");
        AddArg(dict.get(), ParseExpression());
        if (!TakeOperator(",")) break;
      }
      Expect("}");
      return dict;
    }
    Fail(Cat("expected an expression, found ", Describe(token)));
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
    FailAt(token.line, Cat("the number ", token.text.substr(0, 40), " is out of range"));
    return NewExpr(ExprKind::kName, token.line, "");
  }

  ExprPtr ParsePostfix(ExprPtr value) {
    while (status_.ok()) {
      const int line = Peek().line;
      if (TakeOperator(".")) {
        if (Peek().kind == TokenKind::kInteger) {
          ExprPtr index = ParseNumber(Next());
          value = NewExpr(ExprKind::kIndex, line, "", std::move(value), std::move(index));
        } else {
          std::string name = ExpectName();
          value = NewExpr(ExprKind::kMember, line, std::move(name), std::move(value));
        }
      } else if (TakeOperator("[")) {
        value = ParseSubscript(std::move(value), line);
      } else if (IsOperator("(")) {
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
    while (status_.ok() && !IsOperator("]")) {
      if (TakeOperator(":")) {
        is_slice = true;
        if (++part > 2) Fail("a slice has more than three parts");
        continue;
      }
      parts[std::min<size_t>(part, 2)] = ParseExpression();
      if (!IsOperator(":")) break;
    }
    Expect("]");
    if (is_slice) {
      return NewExpr(ExprKind::kSlice, line, "", std::move(value), std::move(parts[0]),
                     std::move(parts[1]), std::move(parts[2]));
    }
    if (parts[0] == nullptr) {
      FailAt(line, "an index is empty");
      return value;
    }
    return NewExpr(ExprKind::kIndex, line, "", std::move(value), std::move(parts[0]));
  }

  void ParseArguments(Expr* call) {
    Expect("(");
    while (status_.ok() && !IsOperator(")")) {
      if (IsOperator("*") || IsOperator("**")) Fail("* and ** arguments are not supported");
      if (Peek().kind == TokenKind::kName && Peek(1).kind == TokenKind::kOperator &&
          Peek(1).text == "=") {
        std::string name = Next().text;
        Next();
        ExprPtr value = ParseExpression();
        Deepen(call, *value);
        call->named.emplace_back(std::move(name), std::move(value));
      } else {
        if (!call->named.empty()) Fail("a positional argument follows a named one");
        AddArg(call, ParseExpression());
      }
      if (!TakeOperator(",")) break;
    }
    Expect(")");
  }

  // Behind a '|': a filter's name and arguments.
  ExprPtr ParseFilter(ExprPtr value) {
    const int line = Peek().line;
    std::string name = ExpectName();
    while (status_.ok() && TakeOperator(".")) name += Cat(".", ExpectName());
    ExprPtr filter = NewExpr(ExprKind::kFilter, line, std::move(name), std::move(value));
    if (IsOperator("(")) ParseArguments(filter.get());
    return filter;
  }

  ExprPtr ParseFilterChain(ExprPtr value) {
    while (status_.ok() && TakeOperator("|")) value = ParseFilter(std::move(value));
    return value;
  }

  ExprPtr ParseFiltersAndTests(ExprPtr value) {
    while (status_.ok()) {
      if (TakeOperator("|")) {
        value = ParseFilter(std::move(value));
      } else if (TakeName("is")) {
        value = ParseTest(std::move(value));
      } else if (IsOperator("(")) {
        ExprPtr call = NewExpr(ExprKind::kCall, Peek().line, "", std::move(value));
        ParseArguments(call.get());
        value = std::move(call);
      } else {
        break;
      }
    }
    return value;
  }

  ExprPtr ParseTest(ExprPtr value) {
    const int line = Peek().line;
    const bool negated = TakeName("not");
    std::string name = ExpectName();
    ExprPtr test = NewExpr(ExprKind::kTest, line, std::move(name), std::move(value));
    const Token& next = Peek();
    const bool literal = next.kind == TokenKind::kString || next.kind == TokenKind::kInteger ||
                         next.kind == TokenKind::kFloat || IsOperator("[") || IsOperator("{");
    const bool name_argument = next.kind == TokenKind::kName && !IsName("else") && !IsName("or") &&
                               !IsName("and") && !IsName("if") && !IsName("is") && !IsName("in") &&
                               !IsName("not") && !IsName("recursive");
    if (IsOperator("(")) {
      ParseArguments(test.get());
    } else if (literal || name_argument) {
      AddArg(test.get(), ParsePostfix(ParsePrimary()));
    }
    return negated ? NewExpr(ExprKind::kNot, line, "", std::move(test)) : std::move(test);
  }

  std::vector<Token> tokens_;
  size_t pos_ = 0;
  int depth_ = 0;
  int loop_depth_ = 0;
  std::string ended_by_;
  absl::Status status_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<const Template>> ParseTemplate(std::string_view source) {
  if (source.size() > kMaxSourceBytes) {
    return absl::InvalidArgumentError(
        Cat("chat template of ", source.size(), " bytes, at most ", kMaxSourceBytes, " are read"));
  }
  absl::StatusOr<std::vector<Token>> tokens = Tokenize(source);
  if (!tokens.ok()) return tokens.status();
  return Parser(*std::move(tokens)).Run();
}

}  // namespace nibble::jinja
