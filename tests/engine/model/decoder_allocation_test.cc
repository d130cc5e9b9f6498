// SPDX-License-Identifier: Apache-2.0
// A forward pass works in the memory that was set aside when the model was loaded, but for scratch
// that the backend sets aside at the first step of a size. This file
// replaces the global allocation functions of its test program by ones that count.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "engine/artifact/checkpoint.h"
#include "engine/model/decoder.h"
#include "engine/model/prefill_batch.h"
#include "tests/support/golden_model.h"

namespace {

std::atomic<bool> counting{false};
std::atomic<int> allocations{0};

// Not inlined: GCC would see std::free meet the operator new that it is part of.
[[gnu::noinline]] void* Allocate(std::size_t size, std::size_t alignment) {
  if (counting) ++allocations;
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, size) != 0) throw std::bad_alloc();
  return memory;
}

[[gnu::noinline]] void Release(void* memory) { std::free(memory); }

}  // namespace

void* operator new(std::size_t size) { return Allocate(size, alignof(std::max_align_t)); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return Allocate(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { Release(memory); }
void operator delete(void* memory, std::size_t) noexcept { Release(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { Release(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { Release(memory); }

namespace nibble {
namespace {

constexpr int32_t kRows = 8;
constexpr int32_t kContext = 64;

TEST(DecoderAllocationTest, AForwardPassOfASizeSeenBeforeAllocatesNothing) {
  const GoldenModelDirectory directory("llama", "plain");
  auto checkpoint = Checkpoint::Open(directory.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto config = ParseDecoderConfig((*checkpoint)->config());
  ASSERT_TRUE(config.ok()) << config.status();
  for (const Mode mode : {Mode::kExact, Mode::kFast}) {
    for (const char* kv_format : {"bf16", "int8"}) {
      auto backend = MakeCpuBackend({.threads = 2, .tier = ""});
      ASSERT_TRUE(backend.ok()) << backend.status();
      auto decoder = Decoder::Load(
          **backend, *config, **checkpoint,
          {.mode = mode, .max_rows = kRows, .max_logit_rows = kRows, .max_context = kContext});
      ASSERT_TRUE(decoder.ok()) << decoder.status();
      KvPool pool;
      auto kv = (*backend)->AllocateKv((*decoder)->MakeKvSpec(*FindKvFormat(kv_format)),
                                       PrefillBatch::BlocksFor(kContext), &pool);
      ASSERT_TRUE(kv.ok()) << kv.status();
      auto batch = PrefillBatch::Make(**backend, kRows, 1, kContext);
      ASSERT_TRUE(batch.ok()) << batch.status();
      const std::vector<int32_t> tokens(kRows, 5);
      int32_t position = 0;
      const auto forward = [&](int32_t rows) {
        const PrefillBatch::Chunk chunk{std::span(tokens).first(static_cast<size_t>(rows)),
                                        position, 0};
        const BatchView view = (*batch)->Set(std::span(&chunk, 1), /*logits=*/true);
        counting = true;
        (*decoder)->Forward(view, pool);
        EXPECT_TRUE((*backend)->Sync().ok());
        counting = false;
        position += rows;
      };
      forward(kRows);
      allocations = 0;
      forward(kRows);
      for (int step = 0; step < 20; ++step) forward(1);
      EXPECT_EQ(allocations, 0) << kv_format;
    }
  }
  counting = true;
  ::operator delete(::operator new(8));
  counting = false;
  EXPECT_EQ(allocations, 1) << "it does count";
}

}  // namespace
}  // namespace nibble
