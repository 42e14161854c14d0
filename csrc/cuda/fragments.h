// Operands of products on the matrix units, and the weights as operands. Every
// product here is X Y^T: the *columns* of both operands are its inner index. An
// operand's columns may be counted in any order that is the same for both; here
// a lane always holds columns 2 in_group and 2 in_group + 1 of rows group (and
// group
// + 8), and so
//   - 16 rows as a left operand are two times 8 rows as a right one;
//   - the result of a product, as it lies in the registers, is the left or
//   right operand of the next.
#pragma once
#include <type_traits>

#include "cuda/mma.h"
#include "cuda/tile_config.h"
#include "cuda/weights.h"

namespace l0sign::cuda {

constexpr bool is_half(Precision p) { return p == Precision::bf16 || p == Precision::fp16; }

constexpr Factor factor_of(Precision p) {
  return p == Precision::bf16 ? Factor::bf16 : p == Precision::fp16 ? Factor::fp16 : Factor::tf32;
}

// Parts of 8 columns in an operand: the inner index of one instruction.
constexpr int parts_of(Precision p) { return is_half(p) ? 2 : 1; }

// The largest number that a factor holds.
constexpr float largest(Precision p) { return p == Precision::fp16 ? 65504.0f : 3.38e38f; }

// Operands that `inner` parts of columns take.
constexpr int steps_of(Precision p, int inner) { return (inner + parts_of(p) - 1) / parts_of(p); }

#if defined(__CUDACC__) || defined(L0SIGN_SIMT)

struct alignas(8) Two {
  float x[2];
};
__device__ __forceinline__ Two two_at(const float* from) { return *reinterpret_cast<const Two*>(from); }

// Where a lane is in fragments.
struct LanePlace {
  int group, in_group;
  __device__ __forceinline__ explicit LanePlace(int lane) : group(lane / 4), in_group(lane % 4) {}
};

// A value as the nearest tf32, and what is left of it: high high + high low + low high has the error of
// float32. What is left may have a bit more than tf32. It is cut off by the matrix units, so that ptxas
// drops the mask. Of a NaN one of the two is one; of an infinite value `low` is, too.
struct Split {
  uint32_t high, low;
  __device__ __forceinline__ explicit Split(float x)
      : high(nearest(x)), low(bits_of(x - float_of(high)) & kTf32Bits) {}

 private:
  static __device__ __forceinline__ uint32_t nearest(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
    return (bits_of(x) + kTf32Half) & kTf32Bits;  // to_tf32 takes an instruction more, for NaN
#else
    return to_tf32(x);
#endif
  }
};

// 8 rows.
template <Precision P>
struct Right {
  static constexpr Precision kPrecision = P;
  FragmentB high, low;  // low of tf32x3 only

  __device__ __forceinline__ void set(int part, float x0, float x1) {
    if constexpr (P == Precision::tf32x3) {
      const Split first(x0), second(x1);
      high.x[0] = first.high, high.x[1] = second.high;
      low.x[0] = first.low, low.x[1] = second.low;
    } else if constexpr (P == Precision::tf32) {
      high.x[0] = to_tf32(x0), high.x[1] = to_tf32(x1);
    } else {
      high.x[part] = to_halves<factor_of(P)>(x0, x1);
    }
  }
  // The values that were set, up to rounding.
  __device__ __forceinline__ Two values(int part) const {
    if constexpr (P == Precision::tf32x3) {
      return {{float_of(high.x[0]) + float_of(low.x[0]), float_of(high.x[1]) + float_of(low.x[1])}};
    } else if constexpr (P == Precision::tf32) {
      return {{float_of(high.x[0]), float_of(high.x[1])}};
    } else {
      return {{from_halves<factor_of(P)>(high.x[part], 0), from_halves<factor_of(P)>(high.x[part], 1)}};
    }
  }
};

// 16 rows.
template <Precision P>
struct Left {
  FragmentA high, low;

  Left() = default;
  __device__ __forceinline__ Left(const Right<P>& top, const Right<P>& bottom) {
    set(0, top), set(1, bottom);
  }
  __device__ __forceinline__ void set(int half, const Right<P>& rows) {
    high.x[half] = rows.high.x[0], high.x[2 + half] = rows.high.x[1];
    if constexpr (P == Precision::tf32x3) low.x[half] = rows.low.x[0], low.x[2 + half] = rows.low.x[1];
  }
  __device__ __forceinline__ void set(int half, int part, float x0, float x1) {
    if constexpr (is_half(P)) {
      high.x[part * 2 + half] = to_halves<factor_of(P)>(x0, x1);
    } else {
      Right<P> rows;
      rows.set(part, x0, x1);
      set(half, rows);
    }
  }
  // Numbers that a factor holds exactly, 0 or 1: there is no `low`, see
  // multiply_add_exact.
  __device__ __forceinline__ void set_exact(int half, int part, float x0, float x1) {
    if constexpr (is_half(P)) {
      set(half, part, x0, x1);
    } else {
      high.x[half] = bits_of(x0), high.x[2 + half] = bits_of(x1);
    }
  }
  __device__ __forceinline__ Right<P> rows(int half) const {
    Right<P> some = {};
    some.high.x[0] = high.x[half], some.high.x[1] = high.x[2 + half];
    if constexpr (P == Precision::tf32x3) some.low.x[0] = low.x[half], some.low.x[1] = low.x[2 + half];
    return some;
  }
  __device__ __forceinline__ Two values(int half, int part) const { return rows(half).values(part); }
};

// c(k) = from(k) + x(k) y(k)^T for k < kCount. Products that add to one c wait for each other, and so they
// take turns. kExact: x(k) was set_exact. (A local operand is not const, or nvcc takes a reference to it for
// one to a variable of the lambda.)
template <int kCount, bool kExact = false, class Sums, class Lefts, class Rights, class From>
__device__ __forceinline__ void multiply_add_to(Sums c, Lefts x, Rights y, From from) {
  bool first = true;
  const auto products = [&](auto factor, auto left, auto right) {
#pragma unroll
    for (int k = 0; k < kCount; ++k)
      mma<decltype(factor)::value>(c(k), left(x(k)), right(y(k)), first ? from(k) : c(k));
    first = false;
  };
  const auto high = [](const auto& operand) { return operand.high; };
  const auto low = [](const auto& operand) { return operand.low; };
  constexpr Precision P = std::decay_t<decltype(y(0))>::kPrecision;
  constexpr std::integral_constant<Factor, factor_of(P)> kFactor{};
  if constexpr (P == Precision::tf32x3) {
    if constexpr (!kExact) products(kFactor, low, high);
    products(kFactor, high, low);
  }
  products(kFactor, high, high);
}

// c(k) += x(k) y(k)^T
template <int kCount, bool kExact = false, class Sums, class Lefts, class Rights>
__device__ __forceinline__ void multiply_add_each(Sums c, Lefts x, Rights y) {
  multiply_add_to<kCount, kExact>(c, x, y, c);
}

// c += x y^T
template <Precision P>
__device__ __forceinline__ void multiply_add(FragmentC& c, const Left<P>& x, const Right<P>& y) {
  multiply_add_each<1>([&](int) -> FragmentC& { return c; }, [&](int) -> const Left<P>& { return x; },
                       [&](int) -> const Right<P>& { return y; });
}

// The same where x was set_exact.
template <Precision P>
__device__ __forceinline__ void multiply_add_exact(FragmentC& c, const Left<P>& x, const Right<P>& y) {
  multiply_add_each<1, true>([&](int) -> FragmentC& { return c; }, [&](int) -> const Left<P>& { return x; },
                             [&](int) -> const Right<P>& { return y; });
}

// A matrix [rows, columns] (or given transposed) as left operands, padded with
// zeros, in the block's shared memory. 3xTF32 may split on writing, or on every
// reading, which halves the memory. With AsRows it is for right operands only,
// whose words lie side by side then.
template <Precision P, bool kSplitsFirst, bool AsRows = false>
class SharedWeights {
  static constexpr bool kSplit = P == Precision::tf32x3 && kSplitsFirst;
  static constexpr bool kSplitsLater = P == Precision::tf32x3 && !kSplitsFirst;

 public:
  static constexpr int kWords = kSplit ? 8 : 4;  // of a lane and a fragment
  static __host__ __device__ constexpr int shared_words(int fragments, int steps) {
    return fragments * steps * kWarp * kWords;
  }

  // All threads of the block together; a barrier has to follow.
  __device__ __forceinline__ SharedWeights(const float* weight, int64_t rows, int64_t columns,
                                           bool transposed, int fragments, int steps, float* shared, int lane,
                                           int warp)
      : SharedWeights(
            [=](int row, int column) {
              if (row >= rows || column >= columns) return 0.0f;
              return transposed ? weight[column * rows + row] : weight[row * columns + column];
            },
            fragments, steps, shared, lane, warp) {}

  // The same with value(row, column), which pads.
  template <class Value>
  __device__ __forceinline__ SharedWeights(Value value, int fragments, int steps, float* shared, int lane,
                                           int warp)
      : own_(reinterpret_cast<uint32_t*>(shared) + lane * kWords), steps_(steps) {
    const LanePlace place(lane);
#pragma unroll 1
    for (int f = warp; f < fragments * steps; f += kTileWarps) {
      const int m = f / steps, k = f % steps;
      Left<P> x;
      FragmentA whole = {};
      for (int half = 0; half < 2; ++half)
        for (int part = 0; part < parts_of(P); ++part) {
          const int row = m * kUnits + half * 8 + place.group;
          const int column = (k * parts_of(P) + part) * kComponents + place.in_group * 2;
          const float x0 = value(row, column), x1 = value(row, column + 1);
          if constexpr (kSplitsLater) {
            whole.x[half] = bits_of(x0), whole.x[2 + half] = bits_of(x1);
          } else {
            x.set(half, part, x0, x1);
          }
        }
      auto* const to = reinterpret_cast<FragmentA*>(own_ + f * kWarp * kWords);
      to[0] = ordered(kSplitsLater ? whole : x.high);
      if constexpr (kSplit) to[1] = ordered(x.low);
    }
  }

  // 8 rows each, of fragment m.
  __device__ __forceinline__ void rows(int m, int k, Right<P> (&to)[2]) const {
    if constexpr (!AsRows || kSplitsLater) {
      const Left<P> x = get(m, k);
      to[0] = x.rows(0), to[1] = x.rows(1);
    } else {
      const auto* const from = reinterpret_cast<const FragmentA*>(own_ + (m * steps_ + k) * kWarp * kWords);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        to[half].high = {{from[0].x[half * 2], from[0].x[half * 2 + 1]}};
        if constexpr (kSplit) to[half].low = {{from[1].x[half * 2], from[1].x[half * 2 + 1]}};
      }
    }
  }

  __device__ __forceinline__ Left<P> get(int m, int k) const {
    static_assert(!AsRows || kSplitsLater, "these are right operands");
    const auto* const from = reinterpret_cast<const FragmentA*>(own_ + (m * steps_ + k) * kWarp * kWords);
    Left<P> x;
    if constexpr (kSplitsLater) {
      const FragmentA whole = ordered(from[0]);
#pragma unroll
      for (int half = 0; half < 2; ++half)
        x.set(half, 0, float_of(whole.x[half]), float_of(whole.x[2 + half]));
    } else {
      x.high = from[0];
      if constexpr (kSplit) x.low = from[1];
    }
    return x;
  }

 private:
  // To memory, and back.
  static __device__ __forceinline__ FragmentA ordered(const FragmentA& x) {
    return AsRows ? FragmentA{{x.x[0], x.x[2], x.x[1], x.x[3]}} : x;
  }

  uint32_t* own_;
  int steps_;
};

// The same for left and right operands; kTwice holds them twice, so that the
// words of either lie side by side.
template <Precision P, bool kSplitsFirst, bool kTwice>
class BothWeights {
  using Lefts = SharedWeights<P, kSplitsFirst>;
  using Rights = SharedWeights<P, kSplitsFirst, true>;

 public:
  static __host__ __device__ constexpr int shared_words(int fragments, int steps) {
    return (kTwice ? 2 : 1) * Lefts::shared_words(fragments, steps);
  }
  // All threads of the block together; a barrier has to follow.
  __device__ __forceinline__ BothWeights(const float* weight, int64_t rows, int64_t columns, bool transposed,
                                         int fragments, int steps, float* shared, int lane, int warp)
      : lefts_(weight, rows, columns, transposed, fragments, steps, shared, lane, warp),
        rights_(weight, rows, columns, transposed, kTwice ? fragments : 0, steps,
                shared + Lefts::shared_words(fragments, steps), lane, warp) {}

  __device__ __forceinline__ Left<P> get(int m, int k) const { return lefts_.get(m, k); }
  __device__ __forceinline__ void rows(int m, int k, Right<P> (&to)[2]) const {
    if constexpr (kTwice) {
      rights_.rows(m, k, to);
    } else {
      lefts_.rows(m, k, to);
    }
  }

 private:
  const Lefts lefts_;
  const Rights rights_;
};

// The right operands of weights with one step, 8 rows each, for a loop that
// takes all of them each time: in registers, or read at each use.
template <class Weights, Precision P, int kEights, bool kKept>
class RowOperands {
 public:
  __device__ __forceinline__ explicit RowOperands(const Weights& weights) : weights_(weights) {
    if constexpr (kKept)
#pragma unroll
      for (int e = 0; e < kEights; ++e) kept_[e] = read(e);
  }
  __device__ __forceinline__ Right<P> at(int e) const {
    if constexpr (kKept) return kept_[e];
    return read(e);
  }

 private:
  __device__ __forceinline__ Right<P> read(int e) const {
    Right<P> rows[2] = {};
    weights_.rows(e / 2, 0, rows);
    return rows[e % 2];
  }
  const Weights& weights_;
  Right<P> kept_[kKept ? kEights : 1];
};

// A vector [size], padded with zeros to `padded`, in the block's shared memory.
// All threads together.
__device__ __forceinline__ void share_vector(const float* from, int64_t size, int padded, float* shared) {
#pragma unroll 1
  for (int h = static_cast<int>(threadIdx.x); h < padded; h += kTileThreads)
    shared[h] = h < size ? from[h] : 0.0f;
}

// A vector of the rows of fragments of C, or of their columns, as it is added
// to each: what a lane needs lies side by side in the block's shared memory,
// padded with zeros. All threads together.
constexpr int kRowWords = 2, kColumnWords = 2;  // of an element
__device__ __forceinline__ void share_rows(const float* from, int64_t size, int padded, float* shared) {
#pragma unroll 1
  for (int e = static_cast<int>(threadIdx.x); e < padded * kRowWords; e += kTileThreads) {
    const int h = e / 32 * kUnits + e % 4 / 2 * 8 + e % 32 / 4;
    shared[e] = h < size ? from[h] : 0.0f;
  }
}
__device__ __forceinline__ FragmentC rows_at(const float* shared, int m, const LanePlace& place) {
  return *reinterpret_cast<const FragmentC*>(shared + m * 32 + place.group * 4);
}
__device__ __forceinline__ void share_columns(const float* from, int64_t size, int padded, float* shared) {
#pragma unroll 1
  for (int e = static_cast<int>(threadIdx.x); e < padded * kColumnWords; e += kTileThreads) {
    const int h = e / 4 * 2 + e % 2;
    shared[e] = h < size ? from[h] : 0.0f;
  }
}
__device__ __forceinline__ FragmentC columns_at(const float* shared, int eight, const LanePlace& place) {
  return *reinterpret_cast<const FragmentC*>(shared + eight * 16 + place.in_group * 4);
}

// The sum over the lanes that hold the same rows of a fragment, or the same
// columns.
__device__ __forceinline__ float sum_in_group(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}
__device__ __forceinline__ float sum_over_groups(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 4);
  x += __shfl_xor_sync(kAllLanes, x, 8);
  return x + __shfl_xor_sync(kAllLanes, x, 16);
}

#endif

}  // namespace l0sign::cuda
