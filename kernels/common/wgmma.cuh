// SPDX-License-Identifier: Apache-2.0
// Products of a warpgroup (wgmma, sm_90a): panels in shared memory, descriptors, instructions.
//
// A warpgroup is four warps, the first with a number divisible by 4; its 128 threads multiply
// together: D [64, 8 N] (+)= A [64, 16] B [16, 8 N], 16-bit operands, float accumulators. Warp w of
// it holds rows 16 w to 16 w + 15 in the layout of m16n8's C, one d[n] per 8 columns (mma.cuh), and
// an A in registers has the layout of m16n8k16's A.
//
// A panel is rows of 128 or 64 bytes whose 16-byte chunks are permuted within groups of 8 rows
// (`panel_offset`); it starts at a multiple of kPanelAlignment. Rows of several panels continue
// each other. An operand is K-major when a row of the panel runs along k (A and B of A B^T), and
// MN-major when it runs along the columns of B (B of A B).
//
// The products are asynchronous:
//   fence_async_proxy() by each thread that wrote the operands, after its copies, before the
//   barrier wgmma_fence()       before the first product, and after registers of one were read or
//   written wgmma..., wgmma_commit(), wgmma_wait<N>(): as with cp_async; only then use registers
//   and memory
// The host engine runs them too and checks these rules (SIMT.md). Where PW_HAS_WGMMA is 0 the
// functions must not be called.
#pragma once

#include "kernels/common/mma.cuh"
#include "kernels/common/simt.cuh"

#if PW_SM90A_PATH || defined(PATCHWORD_SIMT_HOST)
#define PW_HAS_WGMMA 1
#else
#define PW_HAS_WGMMA 0
#endif

namespace patchword::simt {

inline constexpr int kWarpgroup = 128;
inline constexpr int kPanelAlignment = 1024;

// Whether the current device runs wgmma. Host side.
inline bool device_has_wgmma() {
#if defined(PATCHWORD_SIMT_HOST)
  return true;
#else
  return compute_capability() == 90;
#endif
}

#if !PW_HAS_WGMMA
// Ends the launch with an error: the body of a wgmma kernel where it must never run.
PW_DEVICE void trap() {
#if defined(__CUDA_ARCH__)
  __trap();
#endif
}
#endif

// ---------------------------------------------------------------- panels

// Byte offset of a row's 16-byte chunk in a panel of rows of RowBytes.
template <int RowBytes>
PW_HOST_DEVICE constexpr int panel_offset(int row, int chunk) {
  static_assert(RowBytes == 128 || RowBytes == 64, "a panel has rows of 128 or 64 bytes");
  return row * RowBytes + (chunk ^ (row * RowBytes / 128 % (RowBytes / 16))) * 16;
}

#if defined(PATCHWORD_SIMT_HOST)
// Address in the shared memory of the device that the host plays.
inline unsigned shared_address(const void* pointer PW_SITE_PARAM) {
  return host::shared_address(pointer, site);
}
#endif

// The first panel-aligned place of an arena that has kPanelAlignment bytes to spare.
PW_DEVICE unsigned char* align_panels(unsigned char* arena) {
  return arena + (0u - shared_address(arena)) % kPanelAlignment;
}

// The matrix that starts `address` bytes into shared memory. K-major: 8 rows after 8 rows, and an
// address may start 32 bytes further inside the rows for each 16 of k. MN-major: panels of
// RowBytes / 2 columns, `panel_bytes` apart; 16 rows are the 16 of k.
template <int RowBytes>
PW_DEVICE std::uint64_t panel_descriptor(unsigned address, int panel_bytes = 16) {
  constexpr std::uint64_t kMode = RowBytes == 128 ? 1 : 2;
  constexpr std::uint64_t kStride = 8 * RowBytes / 16;
  return kMode << 62 | kStride << 32 | static_cast<std::uint64_t>(panel_bytes / 16) << 16 |
         (address & 0x3ffffu) >> 4;
}

// The same, `bytes` further on; a multiple of 16.
PW_DEVICE std::uint64_t advance(std::uint64_t descriptor, int bytes) {
  return descriptor + static_cast<std::uint64_t>(bytes / 16);
}

// ---------------------------------------------------------------- order

// Makes this thread's earlier accesses to shared memory visible to the products of others.
PW_DEVICE void fence_async_proxy() {
#if defined(PATCHWORD_SIMT_HOST)
  host::fence_async_proxy();
#elif PW_HAS_WGMMA
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

PW_DEVICE void wgmma_fence(PW_SITE_FIRST) {
#if defined(PATCHWORD_SIMT_HOST)
  host::wgmma_fence(site);
#elif PW_HAS_WGMMA
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

PW_DEVICE void wgmma_commit(PW_SITE_FIRST) {
#if defined(PATCHWORD_SIMT_HOST)
  host::wgmma_commit(site);
#elif PW_HAS_WGMMA
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Keeps the compiler from moving uses of accumulators across a fence or a wait.
template <int N>
PW_DEVICE void pin(float (&d)[N][4]) {
#if PW_SM90A_PATH
  PW_UNROLL
  for (int n = 0; n < N; ++n) {
    asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
  }
#else
  static_cast<void>(d);
#endif
}

// Waits until at most Left of the newest groups are under way; the sums in `d` are then complete.
template <int Left, int N>
PW_DEVICE void wgmma_wait(float (&d)[N][4] PW_SITE_PARAM) {
#if defined(PATCHWORD_SIMT_HOST)
  host::wgmma_wait(Left, site);
  static_cast<void>(d);
#elif PW_HAS_WGMMA
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Left) : "memory");
  pin(d);
#endif
}

// Moves registers between the warpgroups of a block, which together own what the launch gave them.
// All threads of a warpgroup; Count is a multiple of 8.
template <int Count>
PW_DEVICE void lower_registers() {
  static_assert(Count % 8 == 0 && Count >= 24 && Count <= 256, "24 to 256 by 8");
#if PW_SM90A_PATH
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
#endif
}
template <int Count>
PW_DEVICE void raise_registers() {
  static_assert(Count % 8 == 0 && Count >= 24 && Count <= 256, "24 to 256 by 8");
#if PW_SM90A_PATH
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
#endif
}

// ---------------------------------------------------------------- products

#if PW_SM90A_PATH

// Four, sixteen ... accumulators as operands, and their names.
#define PW_ACC(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define PW_ACC4(n) PW_ACC(n), PW_ACC(n + 1), PW_ACC(n + 2), PW_ACC(n + 3)
#define PW_ACC_32 PW_ACC4(0)
#define PW_ACC_64 PW_ACC_32, PW_ACC4(4)
#define PW_ACC_96 PW_ACC_64, PW_ACC4(8)
#define PW_ACC_128 PW_ACC_96, PW_ACC4(12)
#define PW_NAMES_32 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define PW_NAMES_64 PW_NAMES_32 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define PW_NAMES_96 PW_NAMES_64 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define PW_NAMES_128 PW_NAMES_96 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

// The operands after the accumulators are named from `next` on; D is overwritten when `keep` is 0.
#define PW_WGMMA_SHARED(columns, type, a, b, keep)                                   \
  asm volatile("{\n.reg .pred keep;\nsetp.ne.b32 keep, " keep                        \
               ", 0;\n"                                                              \
               "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." type "." type \
               " {" PW_NAMES_##columns "}, " a ", " b ", keep, 1, 1, 0, 0;\n}\n"     \
               : PW_ACC_##columns                                                    \
               : "l"(a_descriptor), "l"(b_descriptor), "r"(accumulate ? 1 : 0)       \
               : "memory")
#define PW_WGMMA_REGISTERS(columns, type, a0, a1, a2, a3, b, keep)                             \
  asm volatile(                                                                                \
      "{\n.reg .pred keep;\nsetp.ne.b32 keep, " keep                                           \
      ", 0;\n"                                                                                 \
      "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." type "." type                    \
      " {" PW_NAMES_##columns "}, {" a0 "," a1 "," a2 "," a3 "}, " b ", keep, 1, 1, 1;\n}\n"   \
      : PW_ACC_##columns                                                                       \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_descriptor), "r"(accumulate ? 1 : 0) \
      : "memory")

#endif

// D (+)= A B^T over 16 of k: both operands in shared memory and K-major. 8 N = 64 or 128.
template <class T, int N>
PW_DEVICE void wgmma_k_major(float (&d)[N][4], std::uint64_t a_descriptor,
                             std::uint64_t b_descriptor, bool accumulate PW_SITE_PARAM) {
  static_assert(std::is_same<T, Half>::value || std::is_same<T, BFloat16>::value,
                "wgmma multiplies Half or BFloat16");
  static_assert(N == 8 || N == 16, "64 or 128 columns");
#if defined(PATCHWORD_SIMT_HOST)
  host::wgmma_issue(
      {&d[0][0], nullptr, a_descriptor, b_descriptor,
       [](std::uint16_t bits) { return to_float(T{bits}); }, 8 * N, false, accumulate},
      site);
#elif PW_SM90A_PATH
  constexpr bool kHalf = std::is_same<T, Half>::value;
  if constexpr (N == 8 && kHalf) {
    PW_WGMMA_SHARED(64, "f16", "%32", "%33", "%34");
  } else if constexpr (N == 8) {
    PW_WGMMA_SHARED(64, "bf16", "%32", "%33", "%34");
  } else if constexpr (kHalf) {
    PW_WGMMA_SHARED(128, "f16", "%64", "%65", "%66");
  } else {
    PW_WGMMA_SHARED(128, "bf16", "%64", "%65", "%66");
  }
#endif
}

// D (+)= A B over 16 of k: A in registers, B in shared memory and MN-major. 8 N = 32, 64, 96, 128.
template <class T, int N>
PW_DEVICE void wgmma_mn_major(float (&d)[N][4], const std::uint32_t (&a)[4],
                              std::uint64_t b_descriptor, bool accumulate PW_SITE_PARAM) {
  static_assert(std::is_same<T, Half>::value || std::is_same<T, BFloat16>::value,
                "wgmma multiplies Half or BFloat16");
  static_assert(N % 4 == 0 && N <= 16, "32, 64, 96 or 128 columns");
#if defined(PATCHWORD_SIMT_HOST)
  host::wgmma_issue({&d[0][0], a, 0, b_descriptor,
                     [](std::uint16_t bits) { return to_float(T{bits}); }, 8 * N, true, accumulate},
                    site);
#elif PW_SM90A_PATH
  constexpr bool kHalf = std::is_same<T, Half>::value;
  if constexpr (N == 4 && kHalf) {
    PW_WGMMA_REGISTERS(32, "f16", "%16", "%17", "%18", "%19", "%20", "%21");
  } else if constexpr (N == 4) {
    PW_WGMMA_REGISTERS(32, "bf16", "%16", "%17", "%18", "%19", "%20", "%21");
  } else if constexpr (N == 8 && kHalf) {
    PW_WGMMA_REGISTERS(64, "f16", "%32", "%33", "%34", "%35", "%36", "%37");
  } else if constexpr (N == 8) {
    PW_WGMMA_REGISTERS(64, "bf16", "%32", "%33", "%34", "%35", "%36", "%37");
  } else if constexpr (N == 12 && kHalf) {
    PW_WGMMA_REGISTERS(96, "f16", "%48", "%49", "%50", "%51", "%52", "%53");
  } else if constexpr (N == 12) {
    PW_WGMMA_REGISTERS(96, "bf16", "%48", "%49", "%50", "%51", "%52", "%53");
  } else if constexpr (kHalf) {
    PW_WGMMA_REGISTERS(128, "f16", "%64", "%65", "%66", "%67", "%68", "%69");
  } else {
    PW_WGMMA_REGISTERS(128, "bf16", "%64", "%65", "%66", "%67", "%68", "%69");
  }
#endif
}

}  // namespace patchword::simt
