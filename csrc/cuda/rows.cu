#include "cuda/rows.h"

#include <cmath>

#include "cuda/workspace.h"

namespace l0sign::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kPart = 32;  // positions that a thread adds up, of one column

__host__ __device__ inline int64_t part_count(int64_t positions) { return (positions + kPart - 1) / kPart; }

int64_t blocks_of(int64_t threads) {
  const int64_t blocks = (threads + kThreads - 1) / kThreads;
  return blocks < kMaxFreeBlocks ? blocks : kMaxFreeBlocks;
}

__device__ __forceinline__ int64_t thread_number() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}
__device__ __forceinline__ int64_t thread_count() { return static_cast<int64_t>(gridDim.x) * kThreads; }

// ---- Sums ----

// The sums of the places that run over the ends of parts: of the one that came before a part, up to its last
// position in it, and of the one that a part begins and does not end.
template <class A>
struct Open {
  A *heads, *tails;  // [parts, width]
};

template <class A>
Open<A> open_sums(Arena& arena, int64_t count, int64_t width) {
  const int64_t size = part_count(count) * width;
  return {arena.take<A>(size), arena.take<A>(size)};
}

__device__ __forceinline__ bool same_place(const RowOrder& o, int64_t k, int64_t next) {
  return next < o.count && o.place[k] == o.place[next];
}

template <class A>
__device__ __forceinline__ void store(A* out, int64_t num_rows, int64_t row, int64_t width, int64_t column,
                                      A sum) {
  if (static_cast<uint64_t>(row) < static_cast<uint64_t>(num_rows)) out[row * width + column] = sum;
}

template <class A>
__global__ void __launch_bounds__(kThreads) sum_parts(RowOrder o, const A* __restrict__ grads, int64_t width,
                                                      Open<A> open, A* out, int64_t num_rows) {
  for (int64_t at = thread_number(); at < part_count(o.count) * width; at += thread_count()) {
    const int64_t part = at / width, column = at % width;
    const int64_t first = part * kPart, last = first + kPart < o.count ? first + kPart : o.count;
    bool begun_here = first == 0 || !same_place(o, first - 1, first), begins = true;
    A sum = 0;
    for (int64_t k = first; k < last; ++k) {
      const A grad = grads[o.order[k] * width + column];
      sum = begins ? grad : sum + grad;
      begins = !same_place(o, k, k + 1);
      if (!begins) continue;
      if (begun_here) {
        store(out, num_rows, o.place[k], width, column, sum);
      } else {
        open.heads[at] = sum;
      }
      begun_here = true;
    }
    if (!begins) (begun_here ? open.tails : open.heads)[at] = sum;
  }
}

// Puts together the sums of the places that begin in a part and end in another.
template <class A>
__global__ void __launch_bounds__(kThreads)
    sum_open(RowOrder o, int64_t width, Open<A> open, A* out, int64_t num_rows) {
  for (int64_t at = thread_number(); at < part_count(o.count) * width; at += thread_count()) {
    const int64_t part = at / width, first = part * kPart, end = first + kPart;
    if (!same_place(o, end - 1, end)) continue;                // ends here
    if (first > 0 && same_place(o, first - 1, end)) continue;  // began before
    A sum = open.tails[at];
    int64_t next = at;
    for (int64_t begin = end;; begin += kPart) {
      next += width;
      sum += open.heads[next];
      if (!same_place(o, end, begin + kPart)) break;
    }
    store(out, num_rows, o.place[end], width, at % width, sum);
  }
}

// ---- Updates ----

// What one number of a table becomes. `lost`: the decay that its row has missed, times lr.
template <class A>
struct AdagradStep {
  A *param, *state_sum;
  A lr, weight_decay, eps;

  explicit AdagradStep(const Adagrad<A>& rule)
      : param(rule.param),
        state_sum(rule.state_sum),
        lr(static_cast<A>(rule.lr)),
        weight_decay(static_cast<A>(rule.decay.value)),
        eps(static_cast<A>(rule.eps)) {}

  __device__ __forceinline__ void operator()(int64_t at, A grad, A lost) const {
    A x = param[at], sum = state_sum[at];
    if (lost > 0) x /= 1 + lost / (std::sqrt(sum) + eps);
    const A g = grad + weight_decay * x;
    sum += g * g;
    state_sum[at] = sum;
    param[at] = x - lr * (g / (std::sqrt(sum) + eps));
  }
};

template <class A>
struct AdamStep {
  A *param, *exp_avg, *exp_avg_sq;
  A lr, weight_decay, eps, step_size, correction, share1, beta2, share2;

  explicit AdamStep(const Adam<A>& rule)
      : param(rule.param),
        exp_avg(rule.exp_avg),
        exp_avg_sq(rule.exp_avg_sq),
        lr(static_cast<A>(rule.lr)),
        weight_decay(static_cast<A>(rule.decay.value)),
        eps(static_cast<A>(rule.eps)),
        // 1 - beta in double: in float32 little would be left of its digits.
        share1(static_cast<A>(1 - rule.beta1)),
        beta2(static_cast<A>(rule.beta2)),
        share2(static_cast<A>(1 - rule.beta2)) {
    const double step = static_cast<double>(rule.decay.step);
    step_size = static_cast<A>(rule.lr / (1 - std::pow(rule.beta1, step)));
    correction = static_cast<A>(std::sqrt(1 - std::pow(rule.beta2, step)));
  }

  __device__ __forceinline__ void operator()(int64_t at, A grad, A lost) const {
    A x = param[at], m = exp_avg[at], v = exp_avg_sq[at];
    if (lost > 0) x /= 1 + lost / (std::sqrt(v) / correction + eps);
    const A g = grad + weight_decay * x;
    m += share1 * (g - m);
    v = beta2 * v + share2 * g * g;
    exp_avg[at] = m;
    exp_avg_sq[at] = v;
    param[at] = x - step_size * (m / (std::sqrt(v) / correction + eps));
  }
};

template <class A, class Step>
__global__ void __launch_bounds__(kThreads) update(RowGradient<A> gradient, int64_t num_rows, int64_t step,
                                                   const int32_t* row_step, Step update_one) {
  for (int64_t at = thread_number(); at < gradient.count * gradient.width; at += thread_count()) {
    const int64_t row = gradient.rows[at / gradient.width];
    if (static_cast<uint64_t>(row) >= static_cast<uint64_t>(num_rows)) continue;
    const int64_t before = row_step ? row_step[row] : 0;
    const int64_t missed = before && step - before > 1 ? step - before - 1 : 0;
    update_one(row * gradient.width + at % gradient.width, gradient.grad[at],
               static_cast<A>(missed) * update_one.lr * update_one.weight_decay);
  }
}

// After all numbers of these rows have been updated.
template <class A>
__global__ void __launch_bounds__(kThreads)
    set_row_step(RowGradient<A> gradient, int64_t num_rows, WeightDecay decay) {
  for (int64_t u = thread_number(); u < gradient.count; u += thread_count()) {
    const int64_t row = gradient.rows[u];
    if (static_cast<uint64_t>(row) < static_cast<uint64_t>(num_rows))
      decay.row_step[row] = static_cast<int32_t>(decay.step);
  }
}

template <class A, class Step>
cudaError_t start(const RowGradient<A>& gradient, int64_t num_rows, const WeightDecay& decay,
                  const Step& step, cudaStream_t stream) {
  L0SIGN_TRY(launch(update<A, Step>, blocks_of(gradient.count * gradient.width), kThreads, 0, stream,
                    gradient, num_rows, decay.step, decay.row_step, step));
  if (!decay.row_step) return cudaSuccess;
  return launch(set_row_step<A>, blocks_of(gradient.count), kThreads, 0, stream, gradient, num_rows, decay);
}

}  // namespace

template <class A>
int64_t sum_rows_workspace(int64_t count, int64_t width) {
  Arena arena(nullptr);
  open_sums<A>(arena, count, width);
  return arena.used();
}

template <class A>
cudaError_t sum_rows(const RowOrder& order, const A* grads, int64_t width, A* out, int64_t num_rows,
                     void* workspace, cudaStream_t stream) {
  Arena arena(workspace);
  const Open<A> open = open_sums<A>(arena, order.count, width);
  const int64_t blocks = blocks_of(part_count(order.count) * width);
  L0SIGN_TRY(launch(sum_parts<A>, blocks, kThreads, 0, stream, order, grads, width, open, out, num_rows));
  return launch(sum_open<A>, blocks, kThreads, 0, stream, order, width, open, out, num_rows);
}

template <class A>
cudaError_t update_rows(const RowGradient<A>& gradient, const Adagrad<A>& rule, int64_t num_rows,
                        cudaStream_t stream) {
  return start(gradient, num_rows, rule.decay, AdagradStep<A>(rule), stream);
}

template <class A>
cudaError_t update_rows(const RowGradient<A>& gradient, const Adam<A>& rule, int64_t num_rows,
                        cudaStream_t stream) {
  return start(gradient, num_rows, rule.decay, AdamStep<A>(rule), stream);
}

#define INSTANTIATE(A)                                                                                 \
  template int64_t sum_rows_workspace<A>(int64_t, int64_t);                                            \
  template cudaError_t sum_rows(const RowOrder&, const A*, int64_t, A*, int64_t, void*, cudaStream_t); \
  template cudaError_t update_rows(const RowGradient<A>&, const Adagrad<A>&, int64_t, cudaStream_t);   \
  template cudaError_t update_rows(const RowGradient<A>&, const Adam<A>&, int64_t, cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace l0sign::cuda
