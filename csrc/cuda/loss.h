// The loss of a prediction and its slope, as torch computes them.
#pragma once
#include <cmath>

#include "core/macros.h"
#include "problem.h"

namespace l0sign {

template <class A>
L0SIGN_HD A loss_of(Loss loss, A y, A target) {
  if (loss == Loss::mse) return (y - target) * (y - target);
  const A log_sigmoid = (y < 0 ? y : A(0)) - std::log1p(std::exp(-std::abs(y)));
  return (1 - target) * y - log_sigmoid;  // NaN where y is
}

template <class A>
L0SIGN_HD A slope_of(Loss loss, A y, A target) {
  return loss == Loss::mse ? 2 * (y - target) : 1 / (1 + std::exp(-y)) - target;
}

}  // namespace l0sign
