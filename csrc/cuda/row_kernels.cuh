// The kernels of an op on pairs of rows, and the choice among them. An op is a struct with its Arguments and
//   template <class Reader, class Team> static double run(const Arguments&, Reader&, Team&, int64_t row, bool active)
// which computes one row and returns its loss (the leader's counts; 0 where no row is). kHolds says whether it reads
// a row more than once.
#pragma once

#include "row_loss_arguments.h"
#include "row_readers.cuh"
#include "row_teams.cuh"

namespace plantops::cuda {

constexpr int kLaneThreads = 256, kBlockThreads = 512, kSumThreads = 1024;

// Rows held in registers, kLanes lanes each. The block adds up its rows' losses in order.
template <class Op, class T, int kLanes, int kChunks>
__global__ void __launch_bounds__(kLaneThreads) lane_kernel(const typename Op::Arguments arguments) {
  constexpr int kRows = kLaneThreads / kLanes;
  const int64_t row = int64_t(blockIdx.x) * kRows + threadIdx.x / kLanes;
  const bool active = row < arguments.rows;
  Lanes<kLanes> team;
  RegisterRows<T, kLanes, kChunks> reader(arguments.logits, row, active);
  const double loss = Op::run(arguments, reader, team, row, active);
  if constexpr (Op::kLoss) {
    if (arguments.partial == nullptr) return;
    double* losses = reinterpret_cast<double*>(shared_memory());
    if (team.leader()) losses[threadIdx.x / kLanes] = loss;
    __syncthreads();
    if (threadIdx.x != 0) return;
    double sum = 0;
    for (int i = 0; i < kRows; ++i) sum += losses[i];
    arguments.partial[blockIdx.x] = sum;
  }
}

// A row for each block, or for each cluster of them; held in shared memory or read again.
template <class Op, class T, bool kHold>
__global__ void __launch_bounds__(kBlockThreads) block_kernel(const typename Op::Arguments arguments) {
  const int64_t row = blockIdx.x / cluster_size();
  Blocks<kBlockThreads> team(shared_memory());
  BlockRows<T, kBlockThreads, kHold> reader(
      arguments.logits, row, shared_memory() + sizeof(typename Blocks<kBlockThreads>::Space));
  const double loss = Op::run(arguments, reader, team, row, true);
  if constexpr (Op::kLoss)
    if (arguments.partial != nullptr && team.leader()) arguments.partial[row] = loss;
  team.finish();
}

// A row for each block, whatever its types and strides. Two blocks on a multiprocessor suffice: without that bound the
// compiler spills to fit more.
template <class Op, class A>
__global__ void __launch_bounds__(kLaneThreads, 2) any_kernel(const typename Op::Arguments arguments) {
  const int64_t row = blockIdx.x;
  Blocks<kLaneThreads> team(shared_memory());
  AnyRows<A, kLaneThreads> reader(arguments.logits, row);
  const double loss = Op::run(arguments, reader, team, row, true);
  if constexpr (Op::kLoss)
    if (arguments.partial != nullptr && team.leader()) arguments.partial[row] = loss;
}

struct Partials {
  const double* values;
  int64_t count;
  double factor;
  void* loss;
};

template <class A>
__global__ void __launch_bounds__(kSumThreads) sum_kernel(const Partials partials) {
  Blocks<kSumThreads> team(shared_memory());
  double sum[1] = {0};
  for (int64_t i = threadIdx.x; i < partials.count; i += kSumThreads) sum[0] += partials.values[i];
  team.sum(sum);
  if (team.leader()) *static_cast<A*>(partials.loss) = A(sum[0] * partials.factor);
}

template <class Op, class T, int kLanes, int kChunks>
cudaError_t launch_lanes(const typename Op::Arguments& arguments, cudaStream_t stream, int64_t& partials) {
  constexpr int kRows = kLaneThreads / kLanes;
  partials = (arguments.rows + kRows - 1) / kRows;
  return launch_kernel(
      lane_kernel<Op, T, kLanes, kChunks>, {{unsigned(partials), 1, 1}, kLaneThreads, kRows * sizeof(double)}, stream,
      arguments);
}

// The fewest blocks that hold the row, two of them on a multiprocessor where that many blocks are to be had; 0: none.
template <class T>
unsigned cluster_for(const LogitPair& logits) {
  constexpr int64_t kMostBlocks = 8;
  const int64_t space = sizeof(typename Blocks<kBlockThreads>::Space);
  const int64_t most = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  const int64_t packs = logits.classes / kPerPack<T> + 2;
  const auto bytes = [&](int64_t blocks) { return space + 2 * (packs / blocks + 1) * int64_t(sizeof(Pack)); };
  if (device_attribute(cudaDevAttrComputeCapabilityMajor) >= 9)
    for (int64_t blocks = 1; blocks <= kMostBlocks; blocks *= 2)
      if (bytes(blocks) <= (blocks < kMostBlocks ? most / 2 : most)) return unsigned(blocks);
  return bytes(1) <= most ? 1 : 0;
}

template <class Op, class T>
cudaError_t launch_blocks(const typename Op::Arguments& arguments, cudaStream_t stream, int64_t& partials) {
  partials = arguments.rows;
  const size_t space = sizeof(typename Blocks<kBlockThreads>::Space);
  if constexpr (Op::kHolds) {
    const unsigned blocks = cluster_for<T>(arguments.logits);
    if (blocks > 0) {
      const size_t packs = size_t(arguments.logits.classes) / kPerPack<T> + 2;
      const Shape shape{{unsigned(arguments.rows) * blocks, 1, 1},
                        kBlockThreads,
                        space + 2 * (packs / blocks + 1) * sizeof(Pack),
                        blocks};
      return launch_kernel(block_kernel<Op, T, true>, shape, stream, arguments);
    }
  }
  return launch_kernel(
      block_kernel<Op, T, false>, {{unsigned(arguments.rows), 1, 1}, kBlockThreads, space}, stream, arguments);
}

template <class Op, class T>
cudaError_t launch_fast(const typename Op::Arguments& arguments, cudaStream_t stream, int64_t& partials) {
  constexpr int64_t kValues = kPerPack<T>;
  const Rows& student = arguments.logits.student;
  // The first pack of a row begins at a 16-byte boundary, which may lie before the row.
  const bool aligned =
      reinterpret_cast<uintptr_t>(student.data) % 16 == 0 && student.row_stride * int64_t(sizeof(T)) % 16 == 0;
  const int64_t width = arguments.logits.classes + (aligned ? 0 : kValues - 1);
  if (width <= 8 * kValues) return launch_lanes<Op, T, 8, 1>(arguments, stream, partials);
  if (width <= 32 * kValues) return launch_lanes<Op, T, 32, 1>(arguments, stream, partials);
  if (width <= 128 * kValues) return launch_lanes<Op, T, 32, 4>(arguments, stream, partials);
  if constexpr (sizeof(T) == 4)
    if (width <= 256 * kValues) return launch_lanes<Op, T, 32, 8>(arguments, stream, partials);
  return launch_blocks<Op, T>(arguments, stream, partials);
}

template <class Op, class A>
cudaError_t launch_any(const typename Op::Arguments& arguments, cudaStream_t stream, int64_t& partials) {
  partials = arguments.rows;
  const Shape shape{{unsigned(arguments.rows), 1, 1}, kLaneThreads, sizeof(typename Blocks<kLaneThreads>::Space)};
  return launch_kernel(any_kernel<Op, A>, shape, stream, arguments);
}

// Computes all rows. `any` asks for the kernels that serve everything. `partials` becomes the number of partial sums.
template <class Op>
cudaError_t launch_rows(
    const typename Op::Arguments& arguments, bool any, cudaStream_t stream, int64_t& partials) {
  partials = 0;
  if (arguments.rows == 0) return cudaSuccess;
  const Rows &s = arguments.logits.student, &t = arguments.logits.teacher;
  const bool fast = !any && s.type == t.type && s.class_stride == 1 && t.class_stride == 1;
  if (fast && s.type == Scalar::f32) return launch_fast<Op, float>(arguments, stream, partials);
  if (fast && s.type == Scalar::bf16) return launch_fast<Op, Bfloat16>(arguments, stream, partials);
  if (fast && s.type == Scalar::f16) return launch_fast<Op, Float16>(arguments, stream, partials);
  if (s.type == Scalar::f64) return launch_any<Op, double>(arguments, stream, partials);
  return launch_any<Op, float>(arguments, stream, partials);
}

// The rows, then the sum of their losses if one is asked for.
template <class Op>
cudaError_t launch_loss(
    const typename Op::Arguments& arguments, bool any, const LossSum& sum, cudaStream_t stream) {
  int64_t count = 0;
  const cudaError_t error = launch_rows<Op>(arguments, any, stream, count);
  if (error != cudaSuccess || sum.loss == nullptr) return error;
  const Partials partials{arguments.partial, count, sum.factor, sum.loss};
  const Shape shape{{1, 1, 1}, kSumThreads, sizeof(typename Blocks<kSumThreads>::Space)};
  return arguments.logits.student.type == Scalar::f64 ? launch_kernel(sum_kernel<double>, shape, stream, partials)
                                                      : launch_kernel(sum_kernel<float>, shape, stream, partials);
}

}  // namespace plantops::cuda
