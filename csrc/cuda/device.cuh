// What the kernels need of CUDA. Compiled by nvcc, or by a C++ compiler behind csrc/tests/emulator.h, which runs them
// on the CPU.
#pragma once

#include "../ops/host_device.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#elif !defined(PLANTOPS_EMULATOR)
#error "CUDA sources are for nvcc; a test on the CPU includes csrc/tests/emulator.h first"
#endif

namespace plantops::cuda {

// The block's dynamic shared memory.
__device__ __forceinline__ unsigned char* shared_memory() {
#if defined(PLANTOPS_EMULATOR)
  return emulator::shared_memory(*emulator::current->block);
#else
  extern __shared__ uint4 dynamic_shared_memory[];
  return reinterpret_cast<unsigned char*>(dynamic_shared_memory);
#endif
}

// Ends the kernel with a message; unlike assert() in release builds too.
__device__ __forceinline__ void device_assert(bool holds, const char* message) {
  if (holds) return;
#if defined(PLANTOPS_EMULATOR)
  emulator::fail(message);
#elif defined(__CUDA_ARCH__)
  __assert_fail(message, __FILE__, __LINE__, "plantops");
#endif
}

// The architectures that have thread-block clusters. On others a cluster is one block.
#if defined(PLANTOPS_EMULATOR) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
#define PLANTOPS_CLUSTERS 1
#endif

__device__ __forceinline__ unsigned cluster_rank() {
#if defined(PLANTOPS_CLUSTERS)
  return __clusterRelativeBlockRank();
#else
  return 0;
#endif
}

__device__ __forceinline__ unsigned cluster_size() {
#if defined(PLANTOPS_CLUSTERS)
  return __clusterSizeInBlocks();
#else
  return 1;
#endif
}

// Behind it every block of the cluster sees what the others wrote to their shared memory before it.
__device__ __forceinline__ void cluster_barrier() {
#if defined(PLANTOPS_CLUSTERS)
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
#endif
}

// The same without the wait for what was written.
__device__ __forceinline__ void cluster_rendezvous() {
#if defined(PLANTOPS_CLUSTERS)
  __cluster_barrier_arrive_relaxed();
  __cluster_barrier_wait();
#endif
}

// Where an address of this block's shared memory lies in that of another block of the cluster.
template <class T>
__device__ __forceinline__ const T* of_rank(const T* address, unsigned rank) {
#if defined(PLANTOPS_CLUSTERS)
  return static_cast<const T*>(__cluster_map_shared_rank(address, rank));
#else
  return address;
#endif
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  if (cudaGetDevice(&device) == cudaSuccess) cudaDeviceGetAttribute(&value, attribute, device);
  return value;
}

// Copies 16 bytes to shared memory without passing through registers. The thread that asked for them may read them after
// wait_for_copies(); addresses lie at multiples of 16.
__device__ __forceinline__ void copy_to_shared(void* to, const void* from) {
#if defined(__CUDA_ARCH__)
  const unsigned address = unsigned(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
#else
  __builtin_memcpy(to, from, 16);
#endif
}
__device__ __forceinline__ void wait_for_copies() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// A value that another block has written: not from this multiprocessor's own cache.
__device__ __forceinline__ double load_shared_value(const double* from) {
#if defined(__CUDA_ARCH__)
  return __ldcg(from);
#else
  return *from;
#endif
}

struct Shape {
  dim3 grid;
  unsigned threads;
  size_t shared_bytes = 0;
  unsigned cluster = 1;  // blocks along x
};

template <class Arguments>
cudaError_t launch_kernel(
    void (*kernel)(Arguments), const Shape& shape, cudaStream_t stream, const Arguments& arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = dim3{shape.threads, 1, 1};
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = shape.cluster;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  if (shape.cluster > 1) {
    config.attrs = &cluster;
    config.numAttrs = 1;
  }
  if (shape.shared_bytes > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shape.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  return cudaLaunchKernelEx(&config, kernel, arguments);
}

}  // namespace plantops::cuda
