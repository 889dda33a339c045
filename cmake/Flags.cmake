# Warnings, optimisation and OpenMP, the same for every target.

function(patchword_flags target)
  target_compile_options(${target} PRIVATE
    -Wall -Wextra -Wno-psabi -Wno-unknown-pragmas
    # GCC 12 reports the undefined pass-through operands inside its own intrinsics headers.
    $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized -Wno-uninitialized>
    # Fused multiply-add everywhere: the accuracy contract allows it and the kernels count on it.
    -ffp-contract=fast -fno-math-errno
    -ffile-prefix-map=${CMAKE_SOURCE_DIR}/=)
  target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:-O3>)
  if(PATCHWORD_ASAN)
    target_compile_options(${target} PRIVATE -fsanitize=address,undefined -fno-omit-frame-pointer -g -O1)
    target_link_options(${target} PRIVATE -fsanitize=address,undefined)
  endif()
endfunction()
