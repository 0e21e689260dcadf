// Which place in the kernels' array of tickets a launch may use.
#pragma once

#include <cuda_runtime_api.h>

namespace plantops::cuda {

// A place that no other launch uses at the same time: one for each stream, whose launches follow each other, and one for
// each launch that is captured, since its graph may be replayed on any stream. -1 where none is left.
int ticket_of(cudaStream_t stream);

}  // namespace plantops::cuda
