// SPDX-License-Identifier: Apache-2.0
// The grammar of expressions in templates. Each function reads from where `tokens` stands; after an
// error, which `tokens` keeps, what it returns is of no use but never null.
#pragma once

#include <memory>

#include "engine/tokenizer/template_ast.h"
#include "engine/tokenizer/template_token_reader.h"

namespace nibble::jinja {

// One expression, "a if b else c" included.
std::unique_ptr<Expr> ParseExpression(TokenReader* tokens);

// One expression, or several with commas between them as a tuple. Without `with_conditional`, an
// "if" ends the expression: it belongs to the statement.
std::unique_ptr<Expr> ParseTuple(TokenReader* tokens, bool with_conditional);

// "name | name(args) ...", the filters of a block, where `first_bar` says whether a '|' comes
// first. The innermost input is kName "": what the block gives.
std::unique_ptr<Expr> ParseBlockFilters(TokenReader* tokens, bool first_bar);

}  // namespace nibble::jinja
