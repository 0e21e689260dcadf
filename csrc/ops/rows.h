// Rows of logits in memory, as CPU and GPU kernels are given them.
#pragma once

#include <cstdint>

namespace plantops {

enum class Scalar { f64, f32, bf16, f16 };

// A matrix of numbers in memory. Strides count elements and may be zero or negative.
struct Rows {
  const void* data;
  int64_t row_stride, class_stride;
  Scalar type;
};

// Student and teacher logits. Computed in float64 when the student is float64, else in float32: "T" below.
struct LogitPair {
  Rows student, teacher;
  int64_t classes;
  double temperature;
};

struct HardTargets {
  const int64_t* target;  // [rows], each in [0, classes)
  double alpha, label_smoothing;
};

}  // namespace plantops
