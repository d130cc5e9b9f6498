// SPDX-License-Identifier: Apache-2.0
// A coroutine with a stack of its own, for the emulator: tens of nanoseconds a switch, where
// swapcontext() costs system calls. x86-64 (System V) only. Not thread-safe; known to
// AddressSanitizer.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

namespace nibble::testing {

class Fiber {
 public:
  explicit Fiber(size_t stack_bytes);
  // A fibre that is under way is dropped: nothing on its stack is destroyed.
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The fibre is new or done. `body` must not let an exception escape.
  void Start(std::function<void()> body);
  bool done() const { return done_; }
  void Resume();  // from outside: runs the fibre until it yields or is done
  void Yield();   // from inside: back to the one who resumed it

 private:
  static void Main();

  std::unique_ptr<unsigned char[]> stack_;
  size_t stack_bytes_;
  std::function<void()> body_;
  bool done_ = true;
  void* own_ = nullptr;    // stack pointer of the fibre while it is suspended
  void* outer_ = nullptr;  // and of the one who resumed it
  // AddressSanitizer's view of both stacks.
  void* own_fake_ = nullptr;
  void* outer_fake_ = nullptr;
  const void* outer_bottom_ = nullptr;
  size_t outer_bytes_ = 0;
};

}  // namespace nibble::testing
