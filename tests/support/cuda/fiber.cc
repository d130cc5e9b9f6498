// SPDX-License-Identifier: Apache-2.0
#include "tests/support/cuda/fiber.h"

#include <cstdint>

#include "kernels/check.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#ifndef __x86_64__
#error "Fiber knows the x86-64 calling convention only"
#endif

// Pushes what a callee must keep, stores the stack pointer in *save, goes on at `to`.
extern "C" void nibble_switch_stack(void** save, void* to);
asm(R"(
.text
.globl nibble_switch_stack
.type nibble_switch_stack, @function
nibble_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size nibble_switch_stack, . - nibble_switch_stack
)");

namespace nibble::testing {
namespace {

Fiber* g_starting = nullptr;

#if defined(__SANITIZE_ADDRESS__)
void BeforeSwitch(void** fake, const void* bottom, size_t bytes) {
  __sanitizer_start_switch_fiber(fake, bottom, bytes);
}
void AfterSwitch(void* fake, const void** bottom, size_t* bytes) {
  __sanitizer_finish_switch_fiber(fake, bottom, bytes);
}
#else
void BeforeSwitch(void**, const void*, size_t) {}
void AfterSwitch(void*, const void**, size_t*) {}
#endif

}  // namespace

Fiber::Fiber(size_t stack_bytes)
    : stack_(new unsigned char[stack_bytes]), stack_bytes_(stack_bytes) {}
Fiber::~Fiber() = default;

void Fiber::Start(std::function<void()> body) {
  NIBBLE_CHECK(done_);
  body_ = std::move(body);
  done_ = false;
  // As if Main had been called: a return address that is never used, above it an aligned stack.
  const uintptr_t top = (reinterpret_cast<uintptr_t>(stack_.get()) + stack_bytes_) / 16 * 16;
  auto* at = reinterpret_cast<void**>(top);
  *--at = nullptr;
  *--at = reinterpret_cast<void*>(&Fiber::Main);
  for (int kept = 0; kept < 6; ++kept) *--at = nullptr;
  own_ = at;
  own_fake_ = nullptr;
}

void Fiber::Resume() {
  NIBBLE_CHECK(!done_);
  g_starting = this;
  BeforeSwitch(&outer_fake_, stack_.get(), stack_bytes_);
  nibble_switch_stack(&outer_, own_);
  AfterSwitch(outer_fake_, nullptr, nullptr);
}

void Fiber::Yield() {
  BeforeSwitch(done_ ? nullptr : &own_fake_, outer_bottom_, outer_bytes_);
  nibble_switch_stack(&own_, outer_);
  AfterSwitch(own_fake_, &outer_bottom_, &outer_bytes_);
}

void Fiber::Main() {
  Fiber* self = g_starting;
  AfterSwitch(nullptr, &self->outer_bottom_, &self->outer_bytes_);
  self->body_();
  self->done_ = true;
  self->Yield();
}

}  // namespace nibble::testing
