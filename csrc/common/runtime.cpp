// SPDX-License-Identifier: Apache-2.0
#include "csrc/common/runtime.h"

#include <dlfcn.h>

#include <cstring>
#include <stdexcept>

#include "kernels/common/cpu_levels.h"
#include "kernels/common/huge_pages.h"
#include "kernels/common/threads.h"

namespace py = pybind11;

namespace patchword::bindings {
namespace {

void* cuda_library = nullptr;

void raise(StatusCode code, const std::string& text) {
  switch (code) {
    case StatusCode::kOk: return;
    case StatusCode::kInvalidArgument: throw py::value_error(text);
    case StatusCode::kUnsupported:
      PyErr_SetString(PyExc_NotImplementedError, text.c_str());
      throw py::error_already_set();
    case StatusCode::kLaunchFailed: break;
  }
  throw std::runtime_error(text);
}

py::object load_cuda_library(const std::string& path) {
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return py::str(dlerror());
  using Version = int (*)();
  auto version = reinterpret_cast<Version>(dlsym(handle, "pw_cuda_abi_version"));
  if (version == nullptr || version() != kAbiVersion) {
    dlclose(handle);
    return py::str("it was built for another version of patchword");
  }
  cuda_library = handle;
  return py::none();
}

py::object unload_cuda_library() {
  cuda_library = nullptr;  // never dlclose: kernels may still be running
  return py::none();
}

// [(name, "9.0", multiprocessors, memory bytes)], or RuntimeError with the driver's reason.
py::list cuda_devices() {
  constexpr int kMost = 16;
  using Info = int (*)(CudaDeviceInfo*, int, int*, char*, size_t);
  auto query = reinterpret_cast<Info>(cuda_symbol("pw_cuda_device_info"));
  CudaDeviceInfo devices[kMost] = {};
  char message[512] = {};
  int count = 0;
  if (query(devices, kMost, &count, message, sizeof(message)) != 0) {
    throw std::runtime_error(message);
  }
  py::list found;
  for (int i = 0; i < count && i < kMost; ++i) {
    const CudaDeviceInfo& d = devices[i];
    found.append(py::make_tuple(
        d.name, std::to_string(d.capability_major) + "." + std::to_string(d.capability_minor),
        d.multiprocessors, d.memory_bytes));
  }
  return found;
}

}  // namespace

void raise_unless_ok(const Status& status, const char* function) {
  if (!status.ok()) raise(status.code, std::string(function) + ": " + status.message);
}

void* cuda_symbol(const char* name) {
  void* symbol = cuda_library == nullptr ? nullptr : dlsym(cuda_library, name);
  if (symbol == nullptr) {
    raise(StatusCode::kUnsupported, cuda_library == nullptr
                                        ? std::string("the CUDA library is not loaded")
                                        : std::string("the CUDA library has no ") + name);
  }
  return symbol;
}

void call_cuda(const char* name, const void* params, uintptr_t stream) {
  using Entry = int (*)(const void*, void*, char*, size_t);
  auto entry = reinterpret_cast<Entry>(cuda_symbol(name));
  char message[512] = {};
  const int code = entry(params, reinterpret_cast<void*>(stream), message, sizeof(message));
  if (code != 0) raise(static_cast<StatusCode>(code), message);
}

void bind_runtime(py::module_& module) {
  module.def("cpu_level", [] { return cpu_level_name(cpu_level()); });
  module.def("best_cpu_level", [] { return cpu_level_name(best_cpu_level()); });
  module.def("force_cpu_level",
             [](const std::string& name) { return force_cpu_level(name.c_str()); });
  module.def("openmp_runtime", &openmp_runtime);
  module.def("expect_writes", [](uintptr_t address, int64_t bytes) {
    expect_writes(pointer<void>(address), bytes);
  });
  module.attr("huge_pages_from") = kHugePagesFrom;
  module.def("load_cuda_library", &load_cuda_library);
  module.def("unload_cuda_library", &unload_cuda_library);
  module.def("cuda_loaded", [] { return cuda_library != nullptr; });
  module.def("cuda_devices", &cuda_devices);
}

}  // namespace patchword::bindings
