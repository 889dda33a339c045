// SPDX-License-Identifier: Apache-2.0
// Entry points that say what the CUDA library is and which devices it can reach.

#include <cstdint>

#include "kernels/common/simt.cuh"

PW_EXPORT int pw_cuda_abi_version() { return patchword::kAbiVersion; }

// Describes up to `capacity` devices and stores how many exist. Returns 0, or a non-zero code with
// the reason in `message` (no driver, a driver too old, no device).
PW_EXPORT int pw_cuda_device_info(patchword::CudaDeviceInfo* devices, int capacity, int* count,
                                  char* message, std::size_t message_length) {
  *count = 0;
  if (message != nullptr && message_length > 0) message[0] = '\0';
#if defined(PATCHWORD_SIMT_HOST)
  *count = 1;
  if (capacity > 0) {
    patchword::CudaDeviceInfo info{};
    std::snprintf(info.name, sizeof(info.name), "patchword host SIMT engine");
    info.capability_major = patchword::simt::compute_capability() / 10;
    info.capability_minor = patchword::simt::compute_capability() % 10;
    info.multiprocessors = patchword::simt::multiprocessor_count();
    info.shared_bytes_per_block = static_cast<std::int64_t>(patchword::simt::max_dynamic_shared());
    devices[0] = info;
  }
  return 0;
#else
  const auto report = [&](cudaError_t error) {
    cudaGetLastError();  // do not leave the error for the next launch to find
    if (message != nullptr) {
      std::snprintf(message, message_length, "%s", cudaGetErrorString(error));
    }
    return static_cast<int>(error);
  };
  cudaError_t error = cudaGetDeviceCount(count);
  if (error != cudaSuccess) {
    *count = 0;
    return report(error);
  }
  for (int i = 0; i < *count && i < capacity; ++i) {
    cudaDeviceProp properties;
    error = cudaGetDeviceProperties(&properties, i);
    if (error != cudaSuccess) return report(error);
    patchword::CudaDeviceInfo info{};
    std::snprintf(info.name, sizeof(info.name), "%s", properties.name);
    info.capability_major = properties.major;
    info.capability_minor = properties.minor;
    info.multiprocessors = properties.multiProcessorCount;
    info.shared_bytes_per_block = static_cast<std::int64_t>(properties.sharedMemPerBlockOptin);
    info.memory_bytes = static_cast<std::int64_t>(properties.totalGlobalMem);
    devices[i] = info;
  }
  return 0;
#endif
}
