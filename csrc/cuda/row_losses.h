// The losses on pairs of rows of logits on a GPU: what the kernels are given, and the functions that launch them on a
// stream. "A" is the type that is computed in: double for a float64 student, else float. Losses and gradients of a
// reduced loss need no value on the host: nothing synchronises.
#pragma once

#if !defined(PLANTOPS_EMULATOR)
#include <cuda_runtime_api.h>
#endif

#include "row_loss_arguments.h"

namespace plantops::cuda {

cudaError_t launch(const KlForward& arguments, cudaStream_t stream);
cudaError_t launch(const KlBackward& arguments, cudaStream_t stream);
cudaError_t launch(const KlValueAndGrad& arguments, cudaStream_t stream);
cudaError_t launch(const DistillationForward& arguments, cudaStream_t stream);
cudaError_t launch(const DistillationBackward& arguments, cudaStream_t stream);

}  // namespace plantops::cuda
