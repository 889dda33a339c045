# The CUDA kernels live in a shared object of their own, loaded on first use, with a static CUDA
# runtime. The same sources also build for the CPU execution layer (PATCHWORD_SIMT).

set(PATCHWORD_CUDA_STATE "off (PATCHWORD_CUDA=OFF)")
if(NOT PATCHWORD_CUDA MATCHES "^(ON|OFF|AUTO)$")
  message(FATAL_ERROR "patchword: PATCHWORD_CUDA must be ON, OFF or AUTO, got '${PATCHWORD_CUDA}'.")
endif()
if(NOT PATCHWORD_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    # Named before enable_language so that CMake's own compiler test does not ask for a GPU.
    if(PATCHWORD_CUDA_ARCHS)
      set(CMAKE_CUDA_ARCHITECTURES ${PATCHWORD_CUDA_ARCHS})
    elseif(NOT CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES 80-real 86-real 89-real 90a-real 100-real 90-virtual)
    endif()
    enable_language(CUDA)
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
    list(JOIN CMAKE_CUDA_ARCHITECTURES " " archs)
    set(PATCHWORD_CUDA_STATE "on (nvcc ${CMAKE_CUDA_COMPILER_VERSION}, ${archs})")
  elseif(PATCHWORD_CUDA STREQUAL "ON")
    message(FATAL_ERROR
      "patchword: PATCHWORD_CUDA=ON needs a working CUDA compiler, and none was found. "
      "Install the CUDA toolkit, set CMAKE_CUDA_COMPILER, or use PATCHWORD_CUDA=AUTO.")
  else()
    set(PATCHWORD_CUDA_STATE "off (no nvcc)")
  endif()
endif()
message(STATUS "patchword: CUDA kernels: ${PATCHWORD_CUDA_STATE}")

function(patchword_add_cuda_library)
  if(NOT CMAKE_CUDA_COMPILER OR PATCHWORD_CUDA STREQUAL "OFF")
    return()
  endif()
  file(GLOB cuda_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/*/*.cu)
  if(NOT cuda_sources)
    return()
  endif()
  add_library(patchword_cuda SHARED ${cuda_sources})
  target_include_directories(patchword_cuda PRIVATE ${CMAKE_SOURCE_DIR})
  target_compile_options(patchword_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:
    --compress-mode=size -Xfatbin=-compress-all --threads=2
    --expt-relaxed-constexpr -Xptxas=-warn-spills -Xcompiler=-fvisibility=hidden
    -Xcompiler=-ffile-prefix-map=${CMAKE_SOURCE_DIR}/=>)
  if(CMAKE_CUDA_ARCHITECTURES MATCHES "90a")
    # Launch code cannot see which architectures a kernel was compiled for.
    target_compile_definitions(patchword_cuda PRIVATE PATCHWORD_SM90A=1)
  endif()
  # C++17 for device code: CMake before 3.26 knows no newer dialect of nvcc.
  set_target_properties(patchword_cuda PROPERTIES CUDA_VISIBILITY_PRESET hidden CUDA_STANDARD 17)
endfunction()

function(patchword_add_simt_library)
  if(NOT PATCHWORD_SIMT)
    return()
  endif()
  file(GLOB cuda_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/*/*.cu)
  # CMake knows a .cu file as CUDA only, so each source is reached through a one-line C++ unit.
  set(units)
  foreach(source IN LISTS cuda_sources)
    get_filename_component(stem ${source} NAME_WE)
    set(unit ${CMAKE_BINARY_DIR}/simt/${stem}.cpp)
    file(CONFIGURE OUTPUT ${unit} CONTENT "#include \"${source}\"\n")
    set_source_files_properties(${unit} PROPERTIES OBJECT_DEPENDS ${source})
    list(APPEND units ${unit})
  endforeach()
  add_library(patchword_simt SHARED ${units} ${CMAKE_SOURCE_DIR}/kernels/common/simt_host.cpp)
  target_include_directories(patchword_simt PRIVATE ${CMAKE_SOURCE_DIR})
  target_compile_definitions(patchword_simt PRIVATE PATCHWORD_SIMT_HOST=1)
  patchword_flags(patchword_simt)
  # Kernel code is data-parallel by fibers: optimising it hard buys nothing and costs build time.
  target_compile_options(patchword_simt PRIVATE -O1)
endfunction()
