// The kernels of an op on pairs of rows, and the choice among them. An op is a struct with its Arguments and
//   template <class Reader, class Team> static double run(const Arguments&, Reader&, Team&, int64_t row, bool active)
// which computes one row and returns its loss (the leader's counts; 0 where no row is). kHolds says whether it reads
// a row more than once.
#pragma once

#include "row_loss_arguments.h"
#include "row_readers.cuh"
#include "row_teams.cuh"

namespace plantops::cuda {

constexpr int kLaneThreads = 256, kSumThreads = 1024;

namespace {
// How many blocks of a launch have left their sum; 0 between launches.
__device__ unsigned tickets[kTickets];
}  // namespace

template <class A, int kThreads>
__device__ __forceinline__ void add_up(const LossSum& sum, Blocks<kThreads>& team) {
  double part = 0;
  for (unsigned i = threadIdx.x; i < sum.blocks; i += kThreads) part += load_shared_value(sum.partial + i);
  const double total = team.sum_of_block(part);
  if (threadIdx.x == 0) *static_cast<A*>(sum.loss) = A(total * sum.factor);
}

// Leaves sum number `index`, which thread 0 has. All threads of the block call it: the last block of a launch with a
// ticket adds up, and its ticket is 0 again.
template <class A, int kThreads>
__device__ __forceinline__ void leave_sum(const LossSum& sum, int64_t index, double value, Blocks<kThreads>& team) {
  bool last = false;
  if (threadIdx.x == 0) {
    sum.partial[index] = value;
    if (sum.ticket >= 0) {
      __threadfence();
      last = atomicInc(&tickets[sum.ticket], sum.blocks - 1) == sum.blocks - 1;
    }
  }
  if (!__syncthreads_or(last)) return;
  __threadfence();
  add_up<A>(sum, team);
}

// Rows held in registers, kLanes lanes each.
template <class Op, class T, int kLanes, int kChunks>
__global__ void __launch_bounds__(kLaneThreads) lane_kernel(const typename Op::Arguments arguments) {
  constexpr int kRows = kLaneThreads / kLanes;
  const int64_t row = int64_t(blockIdx.x) * kRows + threadIdx.x / kLanes;
  const bool active = row < arguments.rows;
  Lanes<kLanes> team;
  RegisterRows<T, kLanes, kChunks> reader(arguments.logits, row, active);
  const double loss = Op::run(arguments, reader, team, row, active);
  if constexpr (Op::kLoss) {
    if (arguments.sum.partial == nullptr) return;
    Blocks<kLaneThreads> block(shared_memory());
    leave_sum<Wide<T>>(arguments.sum, blockIdx.x, block.sum_of_block(team.leader() ? loss : 0.0), block);
  }
}

// A row for each block, or for each cluster of them; held in shared memory or read again. The bound leaves 64 registers
// to a thread, so that 1024 threads run on a multiprocessor at once.
template <class Op, class T, int kThreads, bool kHold>
__global__ void __launch_bounds__(kThreads, 1024 / kThreads) block_kernel(const typename Op::Arguments arguments) {
  const int64_t row = blockIdx.x / cluster_size();
  Blocks<kThreads> team(shared_memory());
  BlockRows<T, kThreads, kHold> reader(
      arguments.logits, row, shared_memory() + sizeof(typename Blocks<kThreads>::Space));
  const double loss = Op::run(arguments, reader, team, row, true);
  team.finish();
  if constexpr (Op::kLoss)
    if (arguments.sum.partial != nullptr && cluster_rank() == 0) leave_sum<Wide<T>>(arguments.sum, row, loss, team);
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
    if (arguments.sum.partial != nullptr) leave_sum<A>(arguments.sum, row, loss, team);
}

template <class A>
__global__ void __launch_bounds__(kSumThreads) sum_kernel(const LossSum sum) {
  Blocks<kSumThreads> team(shared_memory());
  add_up<A>(sum, team);
}

template <int kThreads>
constexpr size_t kReductionBytes = sizeof(typename Blocks<kThreads>::Space);

template <class Op, class T, int kLanes, int kChunks>
cudaError_t launch_lanes(typename Op::Arguments& arguments, cudaStream_t stream) {
  constexpr int kRows = kLaneThreads / kLanes;
  const unsigned blocks = unsigned((arguments.rows + kRows - 1) / kRows);
  if constexpr (Op::kLoss) arguments.sum.blocks = blocks;
  return launch_kernel(
      lane_kernel<Op, T, kLanes, kChunks>, {{blocks, 1, 1}, kLaneThreads, Op::kLoss ? kReductionBytes<kLaneThreads> : 0},
      stream, arguments);
}

constexpr int kFewThreads = 128, kMoreThreads = 256, kManyThreads = 512;

// How many packs of each tensor a block of a cluster holds at most.
template <class T>
int64_t packs_of_block(const LogitPair& logits, int64_t blocks) {
  return (logits.classes / kPerPack<T> + 2) / blocks + 1;
}

// The fewest blocks that hold the row, two of them on a multiprocessor where that many blocks are to be had; 0: none.
template <class T>
unsigned cluster_for(const LogitPair& logits) {
  constexpr int64_t kMostBlocks = 8, kReserved = 1024;  // bytes of shared memory that each block costs besides
  const int64_t most = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  const auto bytes = [&](int64_t blocks) {
    return int64_t(kReductionBytes<kManyThreads>) + 2 * packs_of_block<T>(logits, blocks) * int64_t(sizeof(Pack));
  };
  if (device_attribute(cudaDevAttrComputeCapabilityMajor) >= 9)
    for (int64_t blocks = 1; blocks <= kMostBlocks; blocks *= 2)
      if (bytes(blocks) <= (blocks < kMostBlocks ? (most - kReserved) / 2 : most)) return unsigned(blocks);
  return bytes(1) <= most ? 1 : 0;
}

template <class Op, class T, int kThreads, bool kHold>
cudaError_t launch_block_kernel(typename Op::Arguments& arguments, unsigned blocks, cudaStream_t stream) {
  const size_t held = kHold ? 2 * size_t(packs_of_block<T>(arguments.logits, blocks)) * sizeof(Pack) : 0;
  const Shape shape{{unsigned(arguments.rows) * blocks, 1, 1}, kThreads, kReductionBytes<kThreads> + held, blocks};
  return launch_kernel(block_kernel<Op, T, kThreads, kHold>, shape, stream, arguments);
}

// About four packs for each thread: more rows at once on a multiprocessor hide each other's waits.
template <class Op, class T>
cudaError_t launch_blocks(typename Op::Arguments& arguments, cudaStream_t stream) {
  if constexpr (Op::kLoss) arguments.sum.blocks = unsigned(arguments.rows);
  const unsigned cluster = Op::kHolds ? cluster_for<T>(arguments.logits) : 0, blocks = cluster > 0 ? cluster : 1;
  const int64_t packs = packs_of_block<T>(arguments.logits, blocks);
  if constexpr (Op::kHolds) {
    if (cluster == 0) return launch_block_kernel<Op, T, kManyThreads, false>(arguments, 1, stream);
  }
  if (packs <= 4 * kFewThreads + 2) return launch_block_kernel<Op, T, kFewThreads, Op::kHolds>(arguments, blocks, stream);
  if (packs <= 4 * kMoreThreads + 2)
    return launch_block_kernel<Op, T, kMoreThreads, Op::kHolds>(arguments, blocks, stream);
  return launch_block_kernel<Op, T, kManyThreads, Op::kHolds>(arguments, blocks, stream);
}

template <class Op, class T>
cudaError_t launch_fast(typename Op::Arguments& arguments, cudaStream_t stream) {
  constexpr int64_t kValues = kPerPack<T>;
  const Rows& student = arguments.logits.student;
  // The first pack of a row begins at a 16-byte boundary, which may lie before the row.
  const bool aligned =
      reinterpret_cast<uintptr_t>(student.data) % 16 == 0 && student.row_stride * int64_t(sizeof(T)) % 16 == 0;
  const int64_t width = arguments.logits.classes + (aligned ? 0 : kValues - 1);
  if (width <= 8 * kValues) return launch_lanes<Op, T, 8, 1>(arguments, stream);
  if (width <= 32 * kValues) return launch_lanes<Op, T, 32, 1>(arguments, stream);
  if (width <= 128 * kValues) return launch_lanes<Op, T, 32, 4>(arguments, stream);
  if constexpr (sizeof(T) == 4)
    if (width <= 256 * kValues) return launch_lanes<Op, T, 32, 8>(arguments, stream);
  return launch_blocks<Op, T>(arguments, stream);
}

template <class Op, class A>
cudaError_t launch_any(typename Op::Arguments& arguments, cudaStream_t stream) {
  if constexpr (Op::kLoss) arguments.sum.blocks = unsigned(arguments.rows);
  const Shape shape{{unsigned(arguments.rows), 1, 1}, kLaneThreads, kReductionBytes<kLaneThreads>};
  return launch_kernel(any_kernel<Op, A>, shape, stream, arguments);
}

// Computes all rows. `any` asks for the kernels that serve everything.
template <class Op>
cudaError_t launch_rows(typename Op::Arguments arguments, bool any, cudaStream_t stream) {
  const Rows &s = arguments.logits.student, &t = arguments.logits.teacher;
  const bool fast = !any && s.type == t.type && s.class_stride == 1 && t.class_stride == 1;
  cudaError_t error = cudaSuccess;
  if (arguments.rows == 0)
    ;
  else if (fast && s.type == Scalar::f32)
    error = launch_fast<Op, float>(arguments, stream);
  else if (fast && s.type == Scalar::bf16)
    error = launch_fast<Op, Bfloat16>(arguments, stream);
  else if (fast && s.type == Scalar::f16)
    error = launch_fast<Op, Float16>(arguments, stream);
  else if (s.type == Scalar::f64)
    error = launch_any<Op, double>(arguments, stream);
  else
    error = launch_any<Op, float>(arguments, stream);
  if constexpr (Op::kLoss) {
    const LossSum& sum = arguments.sum;
    const bool added_up = sum.partial == nullptr || (sum.ticket >= 0 && sum.blocks > 0);
    if (error != cudaSuccess || added_up) return error;
    const Shape shape{{1, 1, 1}, kSumThreads, kReductionBytes<kSumThreads>};
    return s.type == Scalar::f64 ? launch_kernel(sum_kernel<double>, shape, stream, sum)
                                 : launch_kernel(sum_kernel<float>, shape, stream, sum);
  }
  return error;
}

}  // namespace plantops::cuda
