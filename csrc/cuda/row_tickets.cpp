#include "row_tickets.h"

#include <c10/cuda/CUDAGraphsC10Utils.h>

#include <mutex>
#include <unordered_map>

#include "row_loss_arguments.h"

namespace plantops::cuda {

int ticket_of(cudaStream_t stream) {
  constexpr int kOfStreams = kTickets / 8;  // the others are for captured launches
  static std::mutex mutex;
  static std::unordered_map<cudaStream_t, int> streams;
  static int captured = kOfStreams;
  // This handle stands for another stream in each thread.
  if (stream == cudaStreamPerThread) return -1;
  const bool capturing = c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
  const std::lock_guard<std::mutex> guard(mutex);
  if (capturing) return captured < kTickets ? captured++ : -1;
  if (const auto found = streams.find(stream); found != streams.end()) return found->second;
  const int next = int(streams.size());
  if (next == kOfStreams) return -1;
  streams.emplace(stream, next);
  return next;
}

}  // namespace plantops::cuda
