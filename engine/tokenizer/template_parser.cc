// SPDX-License-Identifier: Apache-2.0
#include "engine/tokenizer/template_parser.h"

#include <algorithm>
#include <initializer_list>

#include "absl/status/status.h"
#include "engine/base/cat.h"
#include "engine/tokenizer/template_expressions.h"
#include "engine/tokenizer/template_lexer.h"
#include "engine/tokenizer/template_token_reader.h"

namespace nibble::jinja {
namespace {

constexpr size_t kMaxSourceBytes = size_t{256} << 10;

// Recursive descent after the grammar of Jinja 3.1's parser.py.
class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  absl::StatusOr<std::shared_ptr<const Template>> Run() {
    auto result = std::make_shared<Template>();
    result->body = ParseBlock({});
    if (tokens_.ok() && tokens_.Peek().kind != TokenKind::kEnd) {
      tokens_.Fail("unexpected end of a block");
    }
    if (!tokens_.ok()) return tokens_.status();
    return std::shared_ptr<const Template>(std::move(result));
  }

 private:
  // Up to a block that begins with one of `ends`, which is left for the caller: its "{%" and name
  // are consumed and the name is in ended_by_. With no `ends`, up to the end of the template.
  Block ParseBlock(std::initializer_list<std::string_view> ends) {
    const TokenReader::Nested nested(&tokens_);
    Block block;
    const int opened = tokens_.Peek().line;
    while (tokens_.ok()) {
      const Token token = tokens_.Peek();
      if (token.kind == TokenKind::kEnd) {
        if (ends.size() > 0)
          tokens_.FailAt(opened, Cat("a block has no {% ", *(ends.end() - 1), " %}"));
        break;
      }
      tokens_.Next();
      if (token.kind == TokenKind::kText) {
        block.push_back(NewStmt(StmtKind::kText, token.line));
        block.back()->text = token.text;
      } else if (token.kind == TokenKind::kVariableBegin) {
        block.push_back(NewStmt(StmtKind::kOutput, token.line));
        block.back()->expr = ParseTuple(&tokens_, /*with_conditional=*/true);
        if (tokens_.Peek().kind == TokenKind::kVariableEnd) {
          tokens_.Next();
        } else {
          tokens_.Fail(Cat("expected '}}', found ", TokenReader::Describe(tokens_.Peek())));
        }
      } else {
        const std::string keyword = tokens_.ExpectName();
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
      tokens_.ExpectBlockEnd();
      stmt->body = ParseBlock({"endgeneration"});
      tokens_.ExpectBlockEnd();
      return stmt;
    }
    if (keyword == "break" || keyword == "continue") {
      if (loop_depth_ == 0) tokens_.FailAt(line, Cat("{% ", keyword, " %} outside of a loop"));
      tokens_.ExpectBlockEnd();
      return NewStmt(keyword == "break" ? StmtKind::kBreak : StmtKind::kContinue, line);
    }
    tokens_.FailAt(line, Cat("statement '", keyword.substr(0, 40),
                             "' is not supported; supported are if, for, set, macro, with, filter, "
                             "raw, break, continue, generation"));
    return nullptr;
  }

  std::unique_ptr<Stmt> ParseIf(int line) {
    auto stmt = NewStmt(StmtKind::kIf, line);
    ended_by_ = "elif";
    while (tokens_.ok() && ended_by_ == "elif") {
      std::unique_ptr<Expr> condition = ParseTuple(&tokens_, /*with_conditional=*/true);
      tokens_.ExpectBlockEnd();
      Block body = ParseBlock({"elif", "else", "endif"});
      stmt->branches.emplace_back(std::move(condition), std::move(body));
    }
    if (tokens_.ok() && ended_by_ == "else") {
      tokens_.ExpectBlockEnd();
      stmt->branches.emplace_back(nullptr, ParseBlock({"endif"}));
    }
    tokens_.ExpectBlockEnd();
    return stmt;
  }

  std::unique_ptr<Stmt> ParseFor(int line) {
    auto stmt = NewStmt(StmtKind::kFor, line);
    stmt->names = ParseTargets();
    if (!tokens_.TakeName("in"))
      tokens_.Fail(Cat("expected 'in', found ", TokenReader::Describe(tokens_.Peek())));
    // The ternary's "if" would swallow the loop's filter.
    stmt->expr = ParseTuple(&tokens_, /*with_conditional=*/false);
    if (tokens_.TakeName("if")) stmt->condition = ParseExpression(&tokens_);
    if (tokens_.IsName("recursive")) tokens_.Fail("recursive loops are not supported");
    tokens_.ExpectBlockEnd();
    ++loop_depth_;
    stmt->body = ParseBlock({"else", "endfor"});
    --loop_depth_;
    if (tokens_.ok() && ended_by_ == "else") {
      tokens_.ExpectBlockEnd();
      stmt->otherwise = ParseBlock({"endfor"});
    }
    tokens_.ExpectBlockEnd();
    return stmt;
  }

  std::vector<std::string> ParseTargets() {
    std::vector<std::string> names;
    const bool parenthesis = tokens_.TakeOperator("(");
    do {
      if (!names.empty() && tokens_.Peek().kind != TokenKind::kName) break;  // a trailing comma
      names.push_back(tokens_.ExpectName());
    } while (tokens_.ok() && tokens_.TakeOperator(","));
    if (parenthesis) tokens_.Expect(")");
    return names;
  }

  std::unique_ptr<Stmt> ParseSet(int line) {
    auto stmt = NewStmt(StmtKind::kSet, line);
    stmt->names = ParseTargets();
    if (stmt->names.size() == 1 && tokens_.TakeOperator(".")) stmt->member = tokens_.ExpectName();
    if (tokens_.TakeOperator("=")) {
      stmt->expr = ParseTuple(&tokens_, /*with_conditional=*/true);
      tokens_.ExpectBlockEnd();
      return stmt;
    }
    stmt->kind = StmtKind::kSetBlock;
    if (stmt->names.size() != 1 || !stmt->member.empty())
      tokens_.Fail("a block can set one name only");
    if (tokens_.IsOperator("|")) stmt->filters = ParseBlockFilters(&tokens_, /*first_bar=*/true);
    tokens_.ExpectBlockEnd();
    stmt->body = ParseBlock({"endset"});
    tokens_.ExpectBlockEnd();
    return stmt;
  }

  std::unique_ptr<Stmt> ParseMacro(int line) {
    auto stmt = NewStmt(StmtKind::kMacro, line);
    stmt->macro = std::make_unique<MacroNode>();
    stmt->macro->name = tokens_.ExpectName();
    tokens_.Expect("(");
    while (tokens_.ok() && !tokens_.IsOperator(")")) {
      stmt->macro->parameters.push_back(tokens_.ExpectName());
      if (tokens_.TakeOperator("=")) {
        stmt->macro->defaults.push_back(ParseExpression(&tokens_));
      } else if (!stmt->macro->defaults.empty()) {
        tokens_.Fail("a parameter without default follows one with a default");
      }
      if (!tokens_.TakeOperator(",")) break;
    }
    tokens_.Expect(")");
    tokens_.ExpectBlockEnd();
    const int outer_loops = loop_depth_;
    loop_depth_ = 0;
    stmt->macro->body = ParseBlock({"endmacro"});
    loop_depth_ = outer_loops;
    tokens_.TakeName(stmt->macro->name);
    tokens_.ExpectBlockEnd();
    return stmt;
  }

  std::unique_ptr<Stmt> ParseWith(int line) {
    auto stmt = NewStmt(StmtKind::kWith, line);
    while (tokens_.ok() && tokens_.Peek().kind == TokenKind::kName) {
      std::string name = tokens_.ExpectName();
      tokens_.Expect("=");
      stmt->assignments.emplace_back(std::move(name), ParseExpression(&tokens_));
      if (!tokens_.TakeOperator(",")) break;
    }
    tokens_.ExpectBlockEnd();
    stmt->body = ParseBlock({"endwith"});
    tokens_.ExpectBlockEnd();
    return stmt;
  }

  std::unique_ptr<Stmt> ParseFilterBlock(int line) {
    auto stmt = NewStmt(StmtKind::kFilterBlock, line);
    stmt->filters = ParseBlockFilters(&tokens_, /*first_bar=*/false);
    tokens_.ExpectBlockEnd();
    stmt->body = ParseBlock({"endfilter"});
    tokens_.ExpectBlockEnd();
    return stmt;
  }

  TokenReader tokens_;
  int loop_depth_ = 0;
  std::string ended_by_;
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
