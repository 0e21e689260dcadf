// The functions that launch the kernels of planted_conv2d on a stream. Nothing synchronises.
#pragma once

#if !defined(PLANTOPS_EMULATOR)
#include <cuda_runtime_api.h>
#endif

#include "planted_conv2d_arguments.h"

namespace plantops::cuda {

// Kernels of more taps do not fit into shared memory.
constexpr int kMostTaps = 512;

cudaError_t launch(ConvForward arguments, cudaStream_t stream);
cudaError_t launch(const ConvWeightGrad& arguments, cudaStream_t stream);
cudaError_t launch(ConvInputGrad arguments, cudaStream_t stream);
cudaError_t launch(const ConvAddendGrad& arguments, cudaStream_t stream);

// How many partial sums the weight gradient is split into: it depends on shapes alone, so the sums' order does too.
int weight_grad_splits(const ConvGeometry& geometry);

}  // namespace plantops::cuda
