// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/tokenizer/template_value.h"

namespace nibble::jinja {

enum class ExprKind {
  kConstant,     // constant
  kName,         // text
  kList,         // args
  kTuple,        // args
  kDict,         // args: key, value, key, value ...
  kMember,       // args[0].text
  kIndex,        // args[0][args[1]]
  kSlice,        // args[0][args[1]:args[2]:args[3]], absent parts null
  kCall,         // args[0](args[1] ..., named ...)
  kFilter,       // args[0] | text(args[1] ..., named ...)
  kTest,         // args[0] is text(args[1] ...)
  kNot,          // args[0]
  kNegate,       // args[0]
  kPositive,     // args[0]
  kAnd,          // args[0], args[1]
  kOr,           // args[0], args[1]
  kArithmetic,   // args[0] text args[1]; text is + - * / // % **
  kConcatenate,  // args[0] ~ args[1]
  kCompare,      // args[0] ops[0] args[1] ops[1] args[2] ...
  kConditional,  // args[1] if args[0] else args[2] (null: undefined)
};

struct Expr {
  ExprKind kind;
  int line = 0;
  int depth = 1;  // of the tree below
  std::string text;
  Value constant;
  std::vector<std::unique_ptr<Expr>> args;
  std::vector<std::pair<std::string, std::unique_ptr<Expr>>> named;
  std::vector<std::string> ops;  // kCompare: == != < <= > >= in, "not in"
};

struct Stmt;
using Block = std::vector<std::unique_ptr<Stmt>>;

enum class StmtKind {
  kText,         // text
  kOutput,       // expr
  kIf,           // branches; a branch without condition is the else
  kFor,          // names in expr, filtered by condition; body, otherwise
  kSet,          // names = expr, or names[0].member = expr
  kSetBlock,     // names[0] = body, through filters
  kMacro,        // macro
  kWith,         // assignments; body
  kFilterBlock,  // body through filters
  kScope,        // body, as it is (generation)
  kBreak,
  kContinue,
};

struct MacroNode {
  std::string name;
  std::vector<std::string> parameters;
  std::vector<std::unique_ptr<Expr>> defaults;  // of the last parameters
  Block body;
};

struct Stmt {
  StmtKind kind;
  int line = 0;
  std::string text;
  std::string member;
  std::vector<std::string> names;
  std::unique_ptr<Expr> expr;
  std::unique_ptr<Expr> condition;
  // A filter chain applied to the body: kFilter nodes whose innermost args[0] is kName "".
  std::unique_ptr<Expr> filters;
  std::vector<std::pair<std::unique_ptr<Expr>, Block>> branches;
  std::vector<std::pair<std::string, std::unique_ptr<Expr>>> assignments;
  Block body;
  Block otherwise;
  std::unique_ptr<MacroNode> macro;
};

struct Template {
  Block body;
};

}  // namespace nibble::jinja
