// SPDX-License-Identifier: Apache-2.0
// Entry points that say what the CUDA library is and which devices it can reach.

#include <cstddef>
#include <cstdio>

#include "simt.cuh"
#include "types.h"

// Must equal the caller's kAbiVersion; raised when any entry point changes its parameters.
PW_EXPORT int pw_cuda_abi_version() { return patchword::kAbiVersion; }

// Returns the number of devices and writes one line for each: name, compute capability,
// multiprocessors, memory. Returns 0 and writes the reason when none can be used (no driver, a
// driver too old, no device). Text that does not fit is cut.
PW_EXPORT int pw_cuda_device_info(char* text, std::size_t length) {
  if (text == nullptr || length == 0) return 0;
  text[0] = '\0';
#if defined(PATCHWORD_SIMT_HOST)
  const int capability = patchword::simt::compute_capability();
  std::snprintf(text, length, "CPU execution layer, capability %d.%d, %d multiprocessors",
                capability / 10, capability % 10, patchword::simt::multiprocessor_count());
  return 1;
#else
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count == 0) error = cudaErrorNoDevice;
  std::size_t used = 0;
  for (int i = 0; error == cudaSuccess && i < count && used < length; ++i) {
    cudaDeviceProp properties;
    error = cudaGetDeviceProperties(&properties, i);
    if (error != cudaSuccess) break;
    const int written = std::snprintf(
        text + used, length - used, "%s%s, capability %d.%d, %d multiprocessors, %.1f GiB",
        i == 0 ? "" : "\n", properties.name, properties.major, properties.minor,
        properties.multiProcessorCount,
        static_cast<double>(properties.totalGlobalMem) / (1024.0 * 1024.0 * 1024.0));
    used += static_cast<std::size_t>(written);
  }
  if (error == cudaSuccess) return count;
  cudaGetLastError();  // do not leave the error for the next launch to find
  std::snprintf(text, length, "%s", cudaGetErrorString(error));
  return 0;
#endif
}
