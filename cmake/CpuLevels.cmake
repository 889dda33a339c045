# Every *_cpu.cpp is compiled once per CPU level, in a namespace of that level's name, and reached
# through a function table chosen at run time. Common code stays at the baseline.

set(PATCHWORD_LEVELS generic)
set(PATCHWORD_FLAGS_generic "")
set(PATCHWORD_BYTES_generic 16)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  list(APPEND PATCHWORD_LEVELS avx2 avx512 avx512_bf16)
  set(PATCHWORD_FLAGS_avx2 -mavx2 -mfma -mf16c -mtune=znver3)
  set(PATCHWORD_BYTES_avx2 32)
  set(PATCHWORD_FLAGS_avx512
      -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
  set(PATCHWORD_BYTES_avx512 64)
  set(PATCHWORD_FLAGS_avx512_bf16
      ${PATCHWORD_FLAGS_avx512} -mavx512bf16 -mavx512vnni)
  set(PATCHWORD_BYTES_avx512_bf16 64)
  if(PATCHWORD_EMULATED_LEVELS)
    # The AVX-512 tiles with every 64-byte vector lowered to two AVX2 ones: the same source and the
    # same tile shapes, so that machines without AVX-512 can prove the logic.
    list(APPEND PATCHWORD_LEVELS avx512_emulated)
    set(PATCHWORD_FLAGS_avx512_emulated ${PATCHWORD_FLAGS_avx2})
    set(PATCHWORD_BYTES_avx512_emulated 64)
  endif()
endif()
string(REPLACE ";" "," PATCHWORD_LEVELS_BUILT "${PATCHWORD_LEVELS}")

function(patchword_add_cpu_levels library)
  file(GLOB level_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/*/*_cpu.cpp)
  foreach(level IN LISTS PATCHWORD_LEVELS)
    string(TOUPPER ${level} upper)
    target_compile_definitions(${library} PUBLIC PATCHWORD_HAVE_${upper}=1)
    if(level_sources)
      add_library(patchword_${level} OBJECT ${level_sources})
      target_include_directories(patchword_${level} PRIVATE ${CMAKE_SOURCE_DIR})
      target_compile_definitions(patchword_${level} PRIVATE
        PW_LEVEL=${level} PW_VECTOR_BYTES=${PATCHWORD_BYTES_${level}} PW_LEVEL_${upper}=1)
      patchword_flags(patchword_${level})
      target_compile_options(patchword_${level} PRIVATE ${PATCHWORD_FLAGS_${level}})
      target_sources(${library} PRIVATE $<TARGET_OBJECTS:patchword_${level}>)
    endif()
  endforeach()
endfunction()
