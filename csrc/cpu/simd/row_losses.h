// Losses on pairs of rows of logits, as functions on raw memory: compiled once per instruction set, chosen at run time.
#pragma once

#include <cstdint>

#include "../../ops/rows.h"

namespace plantops {

// Null outputs are not written. Log-sum-exps and pointwise terms are of type T.
struct KlForward {
  LogitPair logits;
  double* row_loss;                // [rows]
  void* pointwise;                 // [rows, classes]
  void *lse_student, *lse_teacher; // [rows]
};

// `factor` (upstream gradient x reduction factor / temperature) serves a reduced loss; with `pointwise_grad`, the
// upstream gradient of every term in type T, factor is not read.
struct KlBackward {
  LogitPair logits;
  const void *lse_student, *lse_teacher;
  double factor;
  const Rows* pointwise_grad;
  void* grad_student;  // [rows, classes], the student's type
};

// Value and gradient in one pass; `factor` is the gradient's: reduction factor / temperature.
struct KlValueAndGrad {
  LogitPair logits;
  double factor;
  double* row_loss;
  void* pointwise;
  void* grad_student;
};

struct DistillationForward {
  LogitPair logits;
  HardTargets hard;
  double* row_loss;
  void *lse_student_t, *lse_teacher_t, *lse_student;
};

// The upstream gradient of a row is `factor` times its entry of `row_grad` (type T), if there is one.
struct DistillationBackward {
  LogitPair logits;
  HardTargets hard;
  const void *lse_student_t, *lse_teacher_t, *lse_student;
  double factor;
  const void* row_grad;
  void* grad_student;
};

// Each computes the rows [begin, end). `scratch` holds kScratchRows rows of type T and belongs to the caller's thread.
constexpr int64_t kScratchRows = 5;

struct RowLosses {
  void (*kl_forward)(const KlForward&, void* scratch, int64_t begin, int64_t end);
  void (*kl_backward)(const KlBackward&, void* scratch, int64_t begin, int64_t end);
  void (*kl_value_and_grad)(const KlValueAndGrad&, void* scratch, int64_t begin, int64_t end);
  void (*distillation_forward)(const DistillationForward&, void* scratch, int64_t begin, int64_t end);
  void (*distillation_backward)(const DistillationBackward&, void* scratch, int64_t begin, int64_t end);
};

namespace baseline {
extern const RowLosses row_losses;
}
#if defined(__x86_64__)
namespace avx2 {
extern const RowLosses row_losses;
}
namespace avx512 {
extern const RowLosses row_losses;
}
#endif

}  // namespace plantops
