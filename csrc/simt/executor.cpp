#include "executor.h"

#include <algorithm>
#include <exception>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
static void __sanitizer_start_switch_fiber(void**, const void*, size_t) {}
static void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) {}
static void __asan_unpoison_memory_region(const volatile void*, size_t) {}
#endif

// Static shared memory of all kernels (the linker makes the names). Weak: there may be none.
extern "C" __attribute__((weak)) unsigned char __start_simt_shared[];
extern "C" __attribute__((weak)) unsigned char __stop_simt_shared[];

// ---- Switching stacks ----

extern "C" void l0sign_simt_switch(void** from, void* to);

#if !defined(__x86_64__)
#error "The executor switches stacks on x86-64 only."
#endif
// Saves what a function call must preserve on the stack it leaves, and takes it from the one it enters.
asm(R"(
.text
.globl l0sign_simt_switch
.type l0sign_simt_switch, @function
l0sign_simt_switch:
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
.size l0sign_simt_switch, .-l0sign_simt_switch
)");

namespace l0sign {
namespace simt {
namespace {

constexpr size_t kStackBytes = 128 << 10;
constexpr size_t kEntryBytes = 4 << 10;  // more than thread_main takes of it

enum class State { ready, at_barrier, at_warp, done };

struct Thread {
  std::unique_ptr<unsigned char[]> stack;
  void* top = nullptr;         // its stack pointer while it does not run
  void* fake_stack = nullptr;  // AddressSanitizer's
  State state = State::ready;
  Site site = {};
  unsigned operations = 0;  // warp operations so far: the parity chooses the slots
};

struct Warp {
  alignas(kSlotBytes) unsigned char slots[2][kWarp][kSlotBytes];
};

// The block that runs, and who runs it.
struct Executor {
  Order order = Order::ascending;
  std::mt19937 random{1};
  const std::function<void()>* body = nullptr;
  Index3 block = {}, threads = {}, blocks = {};
  unsigned char* shared = nullptr;
  size_t most_shared_bytes = 227 << 10;
  std::vector<Thread> all;
  std::vector<Warp> warps;
  unsigned current = 0;
  std::exception_ptr error;
  void* scheduler_top = nullptr;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_size = 0;

  void yield(State state, Site site);
  void resume(unsigned t);
  void run_block();
  bool release();
  std::string stuck() const;
};

Executor executor;

std::string text(Site site) { return std::string(site.file) + ":" + std::to_string(site.line); }

// The first thing that runs on a thread's stack.
[[noreturn]] void thread_main() {
  __sanitizer_finish_switch_fiber(nullptr, &executor.scheduler_stack, &executor.scheduler_size);
  try {
    (*executor.body)();
  } catch (...) {
    executor.error = std::current_exception();
  }
  executor.yield(State::done, {});
  __builtin_unreachable();
}

void Executor::yield(State state, Site site) {
  Thread& thread = all[current];
  thread.state = state;
  thread.site = site;
  __sanitizer_start_switch_fiber(state == State::done ? nullptr : &thread.fake_stack, scheduler_stack,
                                 scheduler_size);
  l0sign_simt_switch(&thread.top, scheduler_top);
  __sanitizer_finish_switch_fiber(thread.fake_stack, &scheduler_stack, &scheduler_size);
}

void Executor::resume(unsigned t) {
  current = t;
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, all[t].stack.get(), kStackBytes);
  l0sign_simt_switch(&scheduler_top, all[t].top);
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
  if (error) std::rethrow_exception(std::exchange(error, nullptr));
}

// Lets go on who waited for others that are all there now; whether there was anyone.
bool Executor::release() {
  bool released = false;
  const auto together = [&](unsigned begin, unsigned end, State state) {
    for (unsigned t = begin; t < end; ++t)
      if (all[t].state != state) return;
    for (unsigned t = begin; t < end; ++t) {
      const Site &site = all[t].site, &first = all[begin].site;
      if (site.line != first.line || strcmp(site.file, first.file) != 0)
        throw std::runtime_error("divergent: thread " + std::to_string(begin) + " waits at " + text(first) +
                                 ", thread " + std::to_string(t) + " at " + text(site));
    }
    for (unsigned t = begin; t < end; ++t) all[t].state = State::ready;
    released = true;
  };
  for (unsigned t = 0; t < threads.x; t += kWarp) together(t, t + kWarp, State::at_warp);
  together(0, threads.x, State::at_barrier);
  return released;
}

std::string Executor::stuck() const {
  std::string what = "deadlock in block " + std::to_string(block.x) + ":";
  const char* names[] = {"ready", "waits for the block", "waits for its warp", "left"};
  for (unsigned t = 0; t < threads.x; ++t) {
    const bool same = t && all[t].state == all[t - 1].state && all[t].site.line == all[t - 1].site.line;
    if (same) continue;
    what += " from thread " + std::to_string(t) + ": " + names[static_cast<int>(all[t].state)];
    if (all[t].state != State::done) what += " at " + text(all[t].site);
    what += ";";
  }
  return what;
}

void Executor::run_block() {
  for (unsigned t = 0; t < threads.x; ++t) {
    Thread& thread = all[t];
    if (!thread.stack) thread.stack.reset(new unsigned char[kStackBytes]);
    // Red zones of thread_main, which never returns; and whatever a thread left there that an error
    // abandoned.
    const size_t dirty = thread.state == State::done ? kEntryBytes : kStackBytes;
    __asan_unpoison_memory_region(thread.stack.get() + kStackBytes - dirty, dirty);
    thread.fake_stack = nullptr;
    thread.state = State::ready;
    thread.operations = 0;
    // As if thread_main had been called with an empty frame: six registers, the return address, and a stack
    // that is off a multiple of 16 by 8.
    auto top = reinterpret_cast<uintptr_t>(thread.stack.get() + kStackBytes) & ~uintptr_t{15};
    auto* words = reinterpret_cast<void**>(top - 16);
    std::fill(words - 6, words + 2, nullptr);
    words[0] = reinterpret_cast<void*>(&thread_main);
    thread.top = words - 6;
  }
  std::vector<unsigned> sequence(threads.x);
  for (unsigned t = 0; t < threads.x; ++t) sequence[t] = t;
  if (order == Order::descending) std::reverse(sequence.begin(), sequence.end());
  for (;;) {
    if (order == Order::shuffled) std::shuffle(sequence.begin(), sequence.end(), random);
    bool all_done = true;
    for (unsigned t : sequence) {
      if (all[t].state == State::ready) resume(t);
      all_done = all_done && all[t].state == State::done;
    }
    if (all_done) return;
    if (!release()) throw std::runtime_error(stuck());
  }
}

// Without the sanitizer: static shared memory has red zones between its arrays.
__attribute__((no_sanitize("address"))) void poison_static_shared() {
  if (!__start_simt_shared) return;
  for (volatile unsigned char* p = __start_simt_shared; p != __stop_simt_shared; ++p) *p = 0xFF;
}

}  // namespace

void set_order(Order order) { executor.order = order; }

Index3 thread_index() { return {executor.current, 0, 0}; }
Index3 block_index() { return executor.block; }
Index3 block_size() { return executor.threads; }
Index3 grid_size() { return executor.blocks; }
void* shared_memory() { return executor.shared; }

size_t most_shared_bytes() { return executor.most_shared_bytes; }
void set_most_shared_bytes(size_t bytes) { executor.most_shared_bytes = bytes; }

void run(unsigned blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& thread) {
  if (blocks == 0 || threads == 0 || threads > 1024 || threads % kWarp != 0)
    throw std::runtime_error("launch: expected blocks, and whole warps up to 1,024 threads");
  if (shared_bytes > executor.most_shared_bytes)
    throw std::runtime_error("launch: " + std::to_string(shared_bytes) +
                             " bytes of shared memory, a block has " +
                             std::to_string(executor.most_shared_bytes));
  executor.body = &thread;
  executor.blocks = {blocks, 1, 1};
  executor.threads = {threads, 1, 1};
  while (executor.all.size() < threads) executor.all.emplace_back();
  if (executor.warps.size() < threads / kWarp) executor.warps.resize(threads / kWarp);
  for (unsigned b = 0; b < blocks; ++b) {
    executor.block = {b, 0, 0};
    const std::unique_ptr<unsigned char[]> shared(new unsigned char[shared_bytes]);
    std::fill_n(shared.get(), shared_bytes, 0xFF);
    executor.shared = shared.get();
    poison_static_shared();
    executor.run_block();
  }
}

void block_barrier(Site site) { executor.yield(State::at_barrier, site); }

const unsigned char (*warp_exchange(const void* value, size_t size, Site site)) [kSlotBytes] {
  Thread& thread = executor.all[executor.current];
  // Two sets of slots: a lane may be one operation ahead of another that has not read its slots yet.
  auto* slots = executor.warps[executor.current / kWarp].slots[thread.operations++ % 2];
  unsigned char* own = slots[executor.current % kWarp];
  memset(own, 0xFF, kSlotBytes);
  if (size) memcpy(own, value, size);
  executor.yield(State::at_warp, site);
  return slots;
}

void require_full(unsigned mask, Site site) {
  if (mask != 0xFFFFFFFFu)
    throw std::runtime_error("a warp operation of a part of the warp at " + text(site));
}

}  // namespace simt
}  // namespace l0sign
