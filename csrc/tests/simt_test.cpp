// Tests of the host executor itself: it runs right kernels right, and catches planted faults.
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/device.h"
#include "cuda/mma.h"
#include "expect.h"

namespace {

using namespace l0sign;
using l0sign::cuda::launch;

// ---- Right kernels ----

// Reverses each block's part of the array through shared memory.
void reverse(const int* in, int* out, bool with_barrier) {
  int* shared = cuda::dynamic_shared<int>();
  const unsigned t = threadIdx.x, first = blockIdx.x * blockDim.x;
  shared[t] = in[first + t];
  if (with_barrier) __syncthreads();
  out[first + t] = shared[blockDim.x - 1 - t];
}

__shared__ int static_shared[64];

void reverse_static(const int* in, int* out) {
  static_shared[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = static_shared[63 - threadIdx.x];
}

void read_unwritten(int* out) {
  out[threadIdx.x] = static_shared[threadIdx.x] + cuda::dynamic_shared<int>()[0];
}

void warp_operations(int* sum, unsigned* odd, int* rotated) {
  const int lane = static_cast<int>(threadIdx.x);
  sum[lane] = cuda::warp_sum(lane);
  odd[lane] = __ballot_sync(cuda::kAllLanes, lane % 2);
  rotated[lane] = __shfl_sync(cuda::kAllLanes, lane, (lane + 1) % 32);
}

template <class Run>
std::vector<int> in_order(simt::Order order, int size, Run run) {
  std::vector<int> out(size, -1);
  simt::set_order(order);
  run(out.data());
  return out;
}

const simt::Order kOrders[] = {simt::Order::ascending, simt::Order::descending, simt::Order::shuffled};

void right_kernels() {
  std::vector<int> in(192), reversed(192);
  for (int k = 0; k < 192; ++k) in[k] = k, reversed[k] = k / 64 * 64 + 63 - k % 64;
  for (const simt::Order order : kOrders) {
    expect(in_order(order, 192,
                    [&](int* out) {
                      launch(reverse, 3, 64, 64 * sizeof(int), nullptr, in.data(), out, true);
                    }) == reversed,
           "dynamic shared memory and barriers, three blocks");
    expect(
        in_order(order, 64, [&](int* out) { launch(reverse_static, 1, 64, 0, nullptr, in.data(), out); }) ==
            std::vector<int>(reversed.begin(), reversed.begin() + 64),
        "static shared memory");
    std::vector<int> sum(32), rotated(32);
    std::vector<unsigned> odd(32);
    launch(warp_operations, 1, 32, 0, nullptr, sum.data(), odd.data(), rotated.data());
    for (int k = 0; k < 32; ++k)
      expect(sum[k] == 496 && odd[k] == 0xAAAAAAAAu && rotated[k] == (k + 1) % 32, "warp operations");
  }
  std::vector<int> out(32);
  launch(read_unwritten, 1, 32, sizeof(int), nullptr, out.data());
  expect(out[5] == -2, "shared memory, static and dynamic, is filled with ones anew for each block");
}

// ---- Planted faults ----

void missing_barrier() {
  std::vector<int> in(64);
  for (int k = 0; k < 64; ++k) in[k] = k;
  const auto run = [&](int* out) {
    launch(reverse, 1, 64, 64 * sizeof(int), nullptr, in.data(), out, false);
  };
  expect(in_order(simt::Order::ascending, 64, run) != in_order(simt::Order::descending, 64, run),
         "a missing barrier: two orders disagree");
}

void divergent_barrier() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

void left_barrier() {
  if (threadIdx.x != 7) __syncthreads();
}

void left_warp() {
  if (threadIdx.x != 7) __syncwarp();
}

void part_of_warp() { __ballot_sync(0xFFFFu, true); }

void expect_error(void (*kernel)(), const std::string& beginning) {
  std::string found = "nothing";
  try {
    launch(kernel, 1, 64, 0, nullptr);
  } catch (const std::runtime_error& error) {
    found = error.what();
  }
  expect(found.rfind(beginning, 0) == 0, "expected an error \"" + beginning + "...\", got " + found);
}

void unmatched_barriers() {
  for (const simt::Order order : kOrders) {
    simt::set_order(order);
    expect_error(divergent_barrier, "divergent: ");
    expect_error(left_barrier, "deadlock in block 0: ");
    expect_error(left_warp, "deadlock in block 0: ");
    expect_error(part_of_warp, "a warp operation of a part of the warp at ");
  }
}

void write_at(int* to, int index) { to[index + static_cast<int>(threadIdx.x)] = 1; }
void write_shared_at(int index) { cuda::dynamic_shared<int>()[index + static_cast<int>(threadIdx.x)] = 1; }
void write_stack_at(int* to, int index) {
  volatile int local[4] = {};
  volatile int* pointer = local;
  pointer[index] = 1;
  to[threadIdx.x] = pointer[0];
}

#if defined(__SANITIZE_ADDRESS__)
// What the sanitizer writes when `run` goes out of bounds in a process of its own.
template <class Run>
std::string report_of(Run run) {
  int ends[2];
  if (pipe(ends) != 0) return "no pipe";
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], 2);
    run();
    _exit(0);
  }
  close(ends[1]);
  std::string report(1 << 16, '\0');
  size_t size = 0;
  for (ssize_t got; (got = read(ends[0], &report[size], report.size() - size)) > 0;) size += got;
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  report.resize(size);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? "nothing" : report;
}

void out_of_bounds() {
  const auto contains = [](const std::string& report, const char* what) {
    return report.find(what) != std::string::npos;
  };
  const std::unique_ptr<int[]> to(new int[32]);
  expect(report_of([&] { launch(write_at, 1, 32, 0, nullptr, to.get(), 0); }) == "nothing",
         "a write in bounds");
  expect(
      contains(report_of([&] { launch(write_at, 1, 32, 0, nullptr, to.get(), 1); }), "heap-buffer-overflow"),
      "a write past an array");
  expect(contains(report_of([&] { launch(write_shared_at, 1, 32, 32 * sizeof(int), nullptr, 1); }),
                  "heap-buffer-overflow"),
         "a write past dynamic shared memory");
  // UndefinedBehaviorSanitizer sees this one first.
  expect(contains(report_of([&] { launch(write_stack_at, 1, 32, 0, nullptr, to.get(), 4); }),
                  "insufficient space for an object"),
         "a write past an array on a thread's stack");
}
#endif

// ---- Matrix units ----

// D = A B for A [16, inner], B [inner, 8] held as the documented fragments, inner 8 for tf32 and 16 for
// halves; `fault` shifts one index of A's.
template <cuda::Factor kFactor>
void product(const float* a, const float* b, float* d, bool fault) {
  constexpr int kInner = kFactor == cuda::Factor::tf32 ? 8 : 16;
  const int lane = static_cast<int>(threadIdx.x), group = lane / 4, in_group = lane % 4;
  const int row = fault ? (group + 1) % 8 : group;
  const auto word = [&](auto at, int k) {
    if constexpr (kFactor == cuda::Factor::tf32) {
      return cuda::to_tf32(at(in_group + k / 2));
    } else {
      return cuda::to_halves<kFactor>(at(in_group * 2 + k), at(in_group * 2 + k + 1));
    }
  };
  const auto of_a = [&](int r) { return [=](int k) { return a[r * kInner + k]; }; };
  const auto of_b = [=](int k) { return b[k * 8 + group]; };
  const cuda::FragmentA fa = {
      {word(of_a(row), 0), word(of_a(group + 8), 0), word(of_a(group), 8), word(of_a(group + 8), 8)}};
  const cuda::FragmentB fb = {{word(of_b, 0), word(of_b, 8)}};
  const cuda::FragmentC nothing = {};
  cuda::FragmentC fc = {{NAN, NAN, NAN, NAN}};
  cuda::mma<kFactor>(fc, fa, fb, nothing);
  d[group * 8 + in_group * 2] = fc.x[0];
  d[group * 8 + in_group * 2 + 1] = fc.x[1];
  d[(group + 8) * 8 + in_group * 2] = fc.x[2];
  d[(group + 8) * 8 + in_group * 2 + 1] = fc.x[3];
}

template <cuda::Factor kFactor>
void check_product(const std::string& type) {
  const int inner = kFactor == cuda::Factor::tf32 ? 8 : 16;
  std::vector<float> a(16 * inner), b(inner * 8), d(128), expected(128, 0.0f);
  for (int k = 0; k < 16 * inner; ++k) a[k] = static_cast<float>(k * 37 % 101 - 50);
  for (int k = 0; k < inner * 8; ++k) b[k] = static_cast<float>(k * 29 % 83 - 40);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j)
      for (int k = 0; k < inner; ++k) expected[i * 8 + j] += a[i * inner + k] * b[k * 8 + j];
  launch(product<kFactor>, 1, 32, 0, nullptr, a.data(), b.data(), d.data(), false);
  expect(d == expected, "a product by fragments of " + type);
  launch(product<kFactor>, 1, 32, 0, nullptr, a.data(), b.data(), d.data(), true);
  expect(d != expected, "a wrong fragment index gives another product of " + type);
}

void matrix_units() {
  using cuda::Factor;
  check_product<Factor::tf32>("tf32");
  check_product<Factor::bf16>("bfloat16");
  check_product<Factor::fp16>("float16");

  // To nearest, ties away from zero, 10 bits behind the point.
  const float step = 1.0f / 1024;
  const auto tf32 = [](float x) { return cuda::float_of(cuda::to_tf32(x)); };
  expect(tf32(1 + step) == 1 + step && tf32(1 + step * 0.49f) == 1 && tf32(1 + step * 0.5f) == 1 + step &&
             tf32(-1 - step * 1.5f) == -1 - step * 2,
         "rounding to tf32");
  // To nearest, ties to even, subnormal and infinite numbers included.
  const auto rounded = [](auto to_word, float x) { return to_word(0.0f, x) >> 16; };
  const auto bf16 = [&](float x) { return rounded(cuda::to_halves<Factor::bf16>, x); };
  const auto fp16 = [&](float x) { return rounded(cuda::to_halves<Factor::fp16>, x); };
  expect(bf16(1) == 0x3F80 && bf16(-2.5f) == 0xC020 && bf16(1 + 1.0f / 256) == 0x3F80 &&
             bf16(1 + 3.0f / 256) == 0x3F82 && bf16(3.4e38f) == 0x7F80 && bf16(0) == 0 &&
             bf16(9.2e-41f) == 0x0001,
         "rounding to bfloat16");
  expect(fp16(1) == 0x3C00 && fp16(-2.5f) == 0xC100 && fp16(1 + step / 2) == 0x3C00 &&
             fp16(1 + step * 1.5f) == 0x3C02 && fp16(65504) == 0x7BFF && fp16(65520) == 0x7C00 &&
             fp16(1e9f) == 0x7C00 && fp16(5.96e-8f) == 0x0001 && fp16(-6.1e-5f) == 0x83FF,
         "rounding to float16");
  for (const float x : {0.0f, 1.0f, -2.5f, 6.103515625e-5f, 1536.0f, INFINITY})
    expect(cuda::from_halves<Factor::bf16>(cuda::to_halves<Factor::bf16>(7, x), 1) == x &&
               cuda::from_halves<Factor::fp16>(cuda::to_halves<Factor::fp16>(x, 7), 0) == x,
           "from halves");
  bool caught = false;
  try {
    launch(
        +[] {
          cuda::FragmentC c = {};
          cuda::mma<Factor::tf32>(c, {{cuda::bits_of(1.0001f), 0, 0, 0}}, {{0, 0}}, c);
        },
        1, 32, 0, nullptr);
  } catch (const std::runtime_error&) {
    caught = true;
  }
  expect(caught, "an operand that was not rounded to tf32");
}

}  // namespace

int main() {
  right_kernels();
  missing_barrier();
  unmatched_barriers();
  matrix_units();
#if defined(__SANITIZE_ADDRESS__)
  out_of_bounds();
#else
  expect(false, "these tests need AddressSanitizer");
#endif
  return summary();
}
