// The arguments of the kernels on rows of logits. "A" is the type that is computed in: double for a float64 student,
// else float.
#pragma once

#include <cstdint>

#include "../ops/rows.h"

namespace plantops::cuda {

// Places where the blocks of a launch count themselves.
constexpr int kTickets = 1 << 14;

// How the losses of the rows become one: the sums that blocks leave, added up in order, times `factor`.
struct LossSum {
  double factor;
  double* partial;      // at least [rows]; null: the loss is not reduced
  void* loss;           // A, one
  int ticket = -1;      // a place in [0, kTickets) that no launch at the same time has: the last block adds up; else a
                        // launch of its own does
  unsigned blocks = 0;  // that leave a sum; set by the launch
};

// Null outputs are not written.
struct KlForward {
  LogitPair logits;
  int64_t rows;
  LossSum sum;
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
  LossSum sum;
  void* pointwise;
  void* grad_student;
};

struct DistillationForward {
  LogitPair logits;
  HardTargets hard;
  int64_t rows;
  LossSum sum;
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

}  // namespace plantops::cuda
