// Teams of threads that share a row of logits: a few lanes of a warp, a block, or a cluster of blocks. A team adds up
// and compares in a fixed order, and every thread of it gets the result.
#pragma once

#include "device.cuh"

namespace plantops::cuda {

template <class W>
__device__ __forceinline__ W larger(W a, W b) {
  return b > a ? b : a;  // a where b is NaN: NaN shows in the sums
}

template <int kLanes>
struct Lanes {
  template <class W, int N, class Combine>
  __device__ __forceinline__ void combine(W (&values)[N], Combine combine) {
    PLANTOPS_UNROLL
    for (int lanes = kLanes / 2; lanes > 0; lanes /= 2)
      PLANTOPS_UNROLL
      for (int i = 0; i < N; ++i) values[i] = combine(values[i], __shfl_xor_sync(0xffffffffu, values[i], lanes));
  }
  template <class W, int N>
  __device__ __forceinline__ void sum(W (&values)[N]) {
    combine(values, [](W a, W b) { return a + b; });
  }
  template <class W, int N>
  __device__ __forceinline__ void max(W (&values)[N]) {
    combine(values, [](W a, W b) { return larger(a, b); });
  }
  __device__ __forceinline__ bool leader() const { return threadIdx.x % kLanes == 0; }
};

// What a block keeps in shared memory for its reductions: places of their own for each, so that none waits for another.
template <int kWarps>
struct alignas(16) ReductionSpace {
  static constexpr int kReductions = 3, kValues = 5;
  double warps[kReductions][kWarps][kValues];
  double block[kReductions][kValues];
};

// The blocks of a cluster (of one block, mostly). Every thread of every block calls the same reductions in the same
// order, at most ReductionSpace::kReductions of them, and then finish().
template <int kThreads>
struct Blocks {
  using Space = ReductionSpace<kThreads / 32>;
  Space* space;
  int reduction = 0;

  __device__ __forceinline__ explicit Blocks(unsigned char* memory) : space(reinterpret_cast<Space*>(memory)) {}

  template <class W, int N, class Combine>
  __device__ __forceinline__ void combine(W (&values)[N], Combine combine) {
    combine_threads(values, combine);
    if (cluster_size() > 1) combine_blocks(values, combine);
    ++reduction;
  }
  template <class W, int N, class Combine>
  __device__ __forceinline__ void combine_threads(W (&values)[N], Combine combine) {
    static_assert(N <= Space::kValues);
    Lanes<32>().combine(values, combine);
    const int warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) {
      PLANTOPS_UNROLL
      for (int i = 0; i < N; ++i) space->warps[reduction][warp][i] = double(values[i]);
    }
    __syncthreads();
    PLANTOPS_UNROLL
    for (int i = 0; i < N; ++i) values[i] = W(space->warps[reduction][0][i]);
    PLANTOPS_NO_UNROLL
    for (int w = 1; w < kThreads / 32; ++w) {
      PLANTOPS_UNROLL
      for (int i = 0; i < N; ++i) values[i] = combine(values[i], W(space->warps[reduction][w][i]));
    }
  }
  template <class W, int N, class Combine>
  __device__ __forceinline__ void combine_blocks(W (&values)[N], Combine combine) {
    if (threadIdx.x == 0) {
      PLANTOPS_UNROLL
      for (int i = 0; i < N; ++i) space->block[reduction][i] = double(values[i]);
    }
    cluster_barrier();
    const double* const places = space->block[reduction];
    PLANTOPS_UNROLL
    for (int i = 0; i < N; ++i) values[i] = W(of_rank(places, 0)[i]);
    PLANTOPS_NO_UNROLL
    for (unsigned block = 1; block < cluster_size(); ++block) {
      PLANTOPS_UNROLL
      for (int i = 0; i < N; ++i) values[i] = combine(values[i], W(of_rank(places, block)[i]));
    }
  }
  template <class W, int N>
  __device__ __forceinline__ void sum(W (&values)[N]) {
    combine(values, [](W a, W b) { return a + b; });
  }
  template <class W, int N>
  __device__ __forceinline__ void max(W (&values)[N]) {
    combine(values, [](W a, W b) { return larger(a, b); });
  }
  // Over this block alone, whatever the others of its cluster do.
  template <class W>
  __device__ __forceinline__ W sum_of_block(W value) {
    W values[1] = {value};
    combine_threads(values, [](W a, W b) { return a + b; });
    ++reduction;
    return values[0];
  }
  __device__ __forceinline__ bool leader() const { return threadIdx.x == 0 && cluster_rank() == 0; }

  // A block's shared memory is there until all blocks have read it.
  __device__ __forceinline__ void finish() {
    if (cluster_size() > 1) cluster_rendezvous();
  }
};

}  // namespace plantops::cuda
