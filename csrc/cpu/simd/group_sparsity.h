// Interface between the torch glue (cpu/group_sparsity.cpp) and the SIMD copies of group_sparsity: raw pointers only.
#pragma once

#include <cstdint>

#include "../../ops/group_sparsity.h"

namespace plantops {

// Some output channels of a layer, all their input channels. Memory is [out][in][taps], or [out][taps][in] where channels
// lie last.
template <class T>
struct KernelBlock {
  const T* weight;
  T* gradient;     // laid out as weight; nullptr where only coefficients are wanted
  T* coefficient;  // [out][in]; first holds the norms
  int64_t outputs, inputs, taps;
  bool channels_last;
  bool stream;  // write the gradient past the caches
};

// gradient = scale (coefficient d + l1 sign(w)) with d = w for penalties on squares, sign(w) for the others, and
// coefficient = strength dR/dr (2 for squares).
struct GroupSparsityJob {
  Penalty penalty;
  double strength, l1;
};

template <class T>
struct GroupSparsityKernels {
  // Neuron groups: coefficients, gradient where wanted, and the block's part of the value.
  double (*neuron)(const GroupSparsityJob&, const KernelBlock<T>&);

  // Feature groups, in three steps. The norms, the block's part of the group sums in sums[inputs], and of the l1 term.
  double (*feature_norms)(const GroupSparsityJob&, const KernelBlock<T>&, T* sums);
  // Of a layer: adds up the blocks' sums, turns them into the groups' factors sums[0 .. inputs), returns R.
  double (*feature_groups)(const GroupSparsityJob&, int64_t inputs, int64_t blocks, T* sums);
  // Coefficients, and the gradient where wanted.
  void (*feature_finish)(const GroupSparsityJob&, const KernelBlock<T>&, const T* factors);

  // The gradient from the coefficients.
  void (*gradient)(const GroupSparsityJob&, const KernelBlock<T>&, T scale);
};

#define PLANTOPS_DECLARE(isa)                                          \
  namespace isa {                                                      \
  const GroupSparsityKernels<float>& group_sparsity_kernels(float);    \
  const GroupSparsityKernels<double>& group_sparsity_kernels(double);  \
  }
PLANTOPS_DECLARE(baseline)
PLANTOPS_DECLARE(avx2)
PLANTOPS_DECLARE(avx512)
#undef PLANTOPS_DECLARE

}  // namespace plantops
