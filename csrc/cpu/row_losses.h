// From tensors to the raw rows of simd/row_losses.h, for both losses.
#pragma once

#include <ATen/Parallel.h>

#include <memory>
#include <string_view>

#include "../ops/kl_div_logits.h"
#include "../tensors/rows.h"
#include "simd/row_losses.h"

namespace plantops {

const RowLosses& active_row_losses();

inline bool computes_here(std::string_view impl) { return impl == "native" || impl == "auto"; }

at::Tensor empty_rows(const at::Tensor& student);      // [*] in the compute type
at::Tensor empty_logits(const at::Tensor& student, at::ScalarType type);  // [*, C]
at::Tensor loss_scalar(const at::Tensor& student, double value);
// The number in a one-element tensor of the compute type.
double scalar_value(const char* name, const at::Tensor& tensor, const at::Tensor& student);

// Sum in a fixed order: eight interleaved partial sums, whatever the number of threads was.
double fixed_order_sum(const double* values, int64_t count);

// Calls kernel(scratch, begin, end) over the rows. Work of up to about 20 microseconds stays on the calling thread.
template <class Kernel>
void for_rows(int64_t rows, int64_t classes, bool wide, const Kernel& kernel) {
  constexpr int64_t kElementsPerThread = 16384;
  const int64_t grain = classes >= kElementsPerThread ? 1 : kElementsPerThread / classes;
  at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<char[]> scratch(new char[kScratchRows * classes * (wide ? 8 : 4)]);
    kernel(static_cast<void*>(scratch.get()), begin, end);
  });
}

// Row losses in double: on the stack when few.
class RowBuffer {
 public:
  explicit RowBuffer(int64_t rows) : many_(rows > kFew ? new double[rows] : nullptr) {}
  double* data() { return many_ ? many_.get() : few_; }

 private:
  static constexpr int64_t kFew = 512;
  double few_[kFew];
  std::unique_ptr<double[]> many_;
};

}  // namespace plantops
