// Runs CUDA kernels on the CPU, for tests where there is no GPU: include this, then the .cu file. Each thread is a
// fiber; barriers and shuffles switch between them. Warps run one after the other, in an order shuffled by a seed, each
// as far as it gets, so that a missing barrier shows up as a wrong result. Shared memory is NaN before it is written and
// once its block has ended; a write behind it, and a barrier that some thread does not reach, end the program.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#define PLANTOPS_EMULATOR 1

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct EmulatedStream;
using cudaStream_t = EmulatedStream*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    dim3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr {
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrComputeCapabilityMajor
};

namespace emulator {

// What the emulated device is; tests change it.
struct Device {
  int major = 9, shared_memory = 227 * 1024;
  unsigned seed = 0;
  int launches = 0, clusters = 0;  // counted: all launches, and those of clusters of more than one block
};
inline Device device;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulator: %s\n", what);
  std::exit(1);
}

struct Barrier {
  unsigned members = 0, arrived = 0, generation = 0;
};

struct Block {
  dim3 index;
  unsigned rank = 0, left = 0;  // left: threads that are not done
  Barrier barrier;
  std::vector<Barrier> warps;
  std::vector<uint64_t> exchange;  // one slot for each thread
  std::vector<uint64_t> shared;    // with guard words behind it
  size_t shared_bytes = 0;
  bool any = false;  // of __syncthreads_or
};

constexpr uint64_t kGuard = 0xfff7a5a5fff7a5a5;  // a NaN as double and as two floats: reading it shows

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Block* block = nullptr;
  dim3 thread;
  bool done = false, waiting = false;
  const Barrier* barrier = nullptr;
  unsigned generation = 0;
};

struct Cluster {
  ucontext_t scheduler;
  unsigned threads = 0;  // of a block
  size_t steps = 0;
  unsigned warps() const { return (threads + 31) / 32; }
  std::vector<Block> blocks;
  std::vector<Fiber> fibers;
  Barrier barrier;
  std::function<void()> body;
};
inline Cluster* cluster = nullptr;
inline Fiber* current = nullptr;
inline dim3 grid_dim, block_dim;

inline void wait(Barrier& barrier) {
  if (++barrier.arrived == barrier.members) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  current->barrier = &barrier;
  current->generation = barrier.generation;
  current->waiting = true;
  swapcontext(&current->context, &cluster->scheduler);
}

inline unsigned thread_rank() {
  return current->thread.x + block_dim.x * (current->thread.y + block_dim.y * current->thread.z);
}

inline void fiber_main() {
  cluster->body();
  current->done = true;
  swapcontext(&current->context, &cluster->scheduler);
}

// 16-byte aligned.
inline unsigned char* shared_memory(Block& block) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(block.shared.data());
  return reinterpret_cast<unsigned char*>((address + 15) & ~uintptr_t(15));
}

inline void check_guard(Block& block) {
  const unsigned char* end = shared_memory(block) + (block.shared_bytes + 7) / 8 * 8;
  for (const uint64_t& word : block.shared)
    if (reinterpret_cast<const unsigned char*>(&word) >= end && word != kGuard)
      fail("a write behind the shared memory");
}

// Runs the threads of a warp until each is done or waits; returns how many are newly done. A block's shared memory is
// gone with its last thread.
inline unsigned run_warp(Cluster& c, Block& block, unsigned warp) {
  Fiber* const fibers = c.fibers.data() + size_t(block.rank) * c.threads;
  const unsigned begin = 32 * warp, end = std::min(begin + 32, c.threads);
  unsigned done = 0;
  for (bool moved = true; moved;) {
    moved = false;
    for (Fiber* fiber = fibers + begin; fiber < fibers + end; ++fiber) {
      if (fiber->done || (fiber->waiting && fiber->barrier->generation == fiber->generation)) continue;
      fiber->waiting = false;
      current = fiber;
      swapcontext(&c.scheduler, &fiber->context);
      moved = true;
      ++c.steps;
      done += fiber->done;
    }
  }
  block.left -= done;
  if (done > 0 && block.left == 0) {
    check_guard(block);
    std::fill(block.shared.begin(), block.shared.end(), kGuard);
  }
  return done;
}

inline void run_cluster(Cluster& c, std::mt19937& random) {
  cluster = &c;
  for (Fiber& fiber : c.fibers) {
    getcontext(&fiber.context);
    constexpr size_t kStack = 128 * 1024;
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    fiber.done = fiber.waiting = false;
    makecontext(&fiber.context, fiber_main, 0);
  }
  // Warps in random order, each as far as it gets before the next one: so that what must wait for another warp, and
  // does not, comes too early.
  const unsigned warp_count = unsigned(c.fibers.size()) / c.threads * c.warps();
  std::vector<unsigned> order(warp_count);
  for (unsigned w = 0; w < warp_count; ++w) order[w] = w;
  size_t left = c.fibers.size();
  while (left > 0) {
    const size_t before = c.steps;
    std::shuffle(order.begin(), order.end(), random);
    for (unsigned warp : order) left -= run_warp(c, c.blocks[warp / c.warps()], warp % c.warps());
    if (c.steps == before) fail("a barrier or a shuffle that not all of its threads reach");
  }
}

inline void launch(const cudaLaunchConfig_t& config, std::function<void()> body) {
  dim3 shape;
  for (unsigned i = 0; i < config.numAttrs; ++i) shape = config.attrs[i].val.clusterDim;
  if (config.gridDim.x % shape.x || shape.y != 1 || shape.z != 1) fail("the grid is not made of whole clusters");
  if (shape.x > 1 && device.major < 9) fail("a cluster on a device that has none");
  if (config.dynamicSmemBytes > size_t(device.shared_memory)) fail("more shared memory than the device has");
  grid_dim = config.gridDim;
  block_dim = config.blockDim;
  const unsigned threads = block_dim.x * block_dim.y * block_dim.z, warps = (threads + 31) / 32;
  if (threads == 0 || threads > 1024) fail("a block of no or of more than 1024 threads");
  if (size_t(grid_dim.x) * grid_dim.y * grid_dim.z == 0 || grid_dim.y > 65535 || grid_dim.z > 65535)
    fail("a grid of no block or too large");
  std::mt19937 random(device.seed);
  Cluster c;
  c.body = std::move(body);
  c.threads = threads;
  c.blocks.resize(shape.x);
  c.fibers = std::vector<Fiber>(size_t(shape.x) * threads);
  ++device.launches;
  device.clusters += shape.x > 1;
  for (unsigned z = 0; z < grid_dim.z; ++z)
    for (unsigned y = 0; y < grid_dim.y; ++y)
      for (unsigned x = 0; x < grid_dim.x; x += shape.x) {
        c.barrier = {shape.x * threads};
        for (unsigned rank = 0; rank < shape.x; ++rank) {
          Block& block = c.blocks[rank];
          block.index = {x + rank, y, z};
          block.rank = rank;
          block.barrier = {threads};
          block.left = threads;
          block.warps.assign(warps, {32});
          if (threads % 32) block.warps.back().members = threads % 32;
          block.exchange.resize(threads);
          block.shared_bytes = config.dynamicSmemBytes;
          block.shared.assign((config.dynamicSmemBytes + 7) / 8 + 3, kGuard);
          for (unsigned t = 0; t < threads; ++t) {
            Fiber& fiber = c.fibers[size_t(rank) * threads + t];
            fiber.block = &block;
            fiber.thread = {t % block_dim.x, t / block_dim.x % block_dim.y, t / block_dim.x / block_dim.y};
          }
        }
        run_cluster(c, random);
      }
}

template <class T>
T shuffle_xor(T value, unsigned lanes) {
  static_assert(sizeof(T) <= 8);
  Block& block = *current->block;
  const unsigned me = thread_rank();
  std::memcpy(&block.exchange[me], &value, sizeof(T));
  wait(block.warps[me / 32]);
  T other;
  std::memcpy(&other, &block.exchange[me ^ lanes], sizeof(T));
  wait(block.warps[me / 32]);
  return other;
}

}  // namespace emulator

#define threadIdx (emulator::current->thread)
#define blockIdx (emulator::current->block->index)

inline int __syncthreads_or(int holds) {
  emulator::Block& block = *emulator::current->block;
  block.any = block.any || holds;
  emulator::wait(block.barrier);
  const bool any = block.any;
  emulator::wait(block.barrier);
  block.any = false;
  return any;
}
inline void __threadfence() {}
inline unsigned atomicInc(unsigned* address, unsigned most) {
  const unsigned before = *address;
  *address = before >= most ? 0 : before + 1;
  return before;
}
inline void __syncthreads() { emulator::wait(emulator::current->block->barrier); }
inline void __syncwarp() { emulator::wait(emulator::current->block->warps[emulator::thread_rank() / 32]); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int lanes) {
  return emulator::shuffle_xor(value, unsigned(lanes));
}
inline unsigned __clusterRelativeBlockRank() { return emulator::current->block->rank; }
inline unsigned __clusterSizeInBlocks() { return unsigned(emulator::cluster->blocks.size()); }
inline void __cluster_barrier_arrive() {}
inline void __cluster_barrier_arrive_relaxed() {}
inline void __cluster_barrier_wait() { emulator::wait(emulator::cluster->barrier); }
inline void* __cluster_map_shared_rank(const void* address, unsigned rank) {
  emulator::Block &mine = *emulator::current->block, &other = emulator::cluster->blocks[rank];
  const auto offset = static_cast<const unsigned char*>(address) - emulator::shared_memory(mine);
  return emulator::shared_memory(other) + offset;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(
    const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  emulator::launch(*config, [=] { kernel(Parameters(arguments)...); });
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int value) {
  return value > emulator::device.shared_memory ? 1 : cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* index) {
  *index = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const bool memory = attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin;
  *value = memory ? emulator::device.shared_memory : emulator::device.major;
  return cudaSuccess;
}
