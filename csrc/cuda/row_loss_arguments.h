// The arguments of the kernels on rows of logits. "A" is the type that is computed in: double for a float64 student,
// else float.
#pragma once

#include <cstdint>

#include "../ops/rows.h"

namespace plantops::cuda {

// Null outputs are not written.
struct KlForward {
  LogitPair logits;
  int64_t rows;
  double* partial;                  // the blocks' sums of the loss, at least [rows]
  void* pointwise;                  // A [rows, classes]
  void *lse_student, *lse_teacher;  // A [rows]
};

// The gradient of a reduced loss, factor x *grad x (p_S - p_T); or with `pointwise_grad` (A, of any strides) that of
// the pointwise terms, and factor and grad are not read.
struct KlBackward {
  LogitPair logits;
  int64_t rows;
  const void *lse_student, *lse_teacher;
  double factor;        // reduction factor / temperature
  const void* grad;     // A, one
  Rows pointwise_grad;  // data null: none
  void* grad_student;   // [rows, classes], the student's type
};

struct KlValueAndGrad {
  LogitPair logits;
  int64_t rows;
  double factor;
  double* partial;
  void* pointwise;
  void* grad_student;
};

struct DistillationForward {
  LogitPair logits;
  HardTargets hard;
  int64_t rows;
  double* partial;
  void* row_loss;  // A [rows]
  void *lse_student_t, *lse_teacher_t, *lse_student;
};

// The upstream gradient of a row is factor x *grad, or with `row_grad` its entry there.
struct DistillationBackward {
  LogitPair logits;
  HardTargets hard;
  int64_t rows;
  const void *lse_student_t, *lse_teacher_t, *lse_student;
  double factor;
  const void *grad, *row_grad;
  void* grad_student;
};

// The second step of a reduced loss: the partial sums, added in order, times `factor`.
struct LossSum {
  double factor;
  void* loss;  // A, one; null: the loss is not reduced
};

}  // namespace plantops::cuda
