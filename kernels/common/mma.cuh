// SPDX-License-Identifier: Apache-2.0
// Warp matrix products (mma.sync) and fragment loads (ldmatrix), with the same layout on the CPU.
//
// Layouts follow the PTX ISA, "Matrix fragments for mma.m16n8k16 / mma.m16n8k8" and "ldmatrix".
// With group = lane / 4 and quad = lane % 4:
//   C, D (16 x 8, float)   c[i]: row group + 8 * (i / 2), column 2 * quad + i % 2
//   A m16n8k16 (16-bit)    a[r] holds columns k, k + 1 (low half first) of row group + 8 * (r % 2),
//                          k = 2 * quad + 8 * (r / 2)
//   B m16n8k16 (16-bit)    b[r] holds rows k, k + 1 (low half first) of column group,
//                          k = 2 * quad + 8 * r
//   A m16n8k8 (tf32)       a[r]: row group + 8 * (r % 2), column quad + 4 * (r / 2)
//   B m16n8k8 (tf32)       b[r]: row quad + 4 * r, column group
//   ldmatrix               register r holds elements (group, 2 * quad) and (group, 2 * quad + 1) of
//                          the r-th 8 x 8 matrix; with `trans` elements (2 * quad, group) and
//                          (2 * quad + 1, group). Lane 8 * r + i gives the address of its row i.
// All 32 lanes take part. Products of 16-bit and tf32 values are exact; the order in which the
// hardware adds them is not specified (the host adds in double and rounds once).
#pragma once

#include "kernels/common/simt.cuh"

namespace patchword::simt {

#if defined(PATCHWORD_SIMT_HOST)

namespace host {

struct MmaSlot {
  float* d;
  const std::uint32_t *a, *b;
  const float* c;
};

// Half h (0 low, 1 high) of a register, as a float.
template <class T>
inline double half_of(std::uint32_t word, unsigned h) {
  return to_float(T{static_cast<std::uint16_t>(word >> (16 * h))});
}

// The tensor core reads the upper 19 bits of a tf32 operand.
inline double tf32_of(std::uint32_t word) { return bit_cast<float>(word & 0xffffe000u); }

// D = A B + C from gathered dense operands, scattered back to the lanes' fragments.
template <int K>
inline void multiply_and_scatter(void* const* slots, const double (&a)[16][K],
                                 const double (&b)[K][8]) {
  for (unsigned lane = 0; lane < 32; ++lane) {
    auto* slot = static_cast<MmaSlot*>(slots[lane]);
    float d[4];
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      double sum = 0;
      for (int k = 0; k < K; ++k) sum += a[row][k] * b[k][column];
      d[i] = static_cast<float>(sum + slot->c[i]);
    }
    std::memcpy(slot->d, d, sizeof(d));
  }
}

template <class T>
inline void combine_m16n8k16(void* const* slots, unsigned) {
  double a[16][16], b[16][8];
  for (unsigned lane = 0; lane < 32; ++lane) {
    const auto* slot = static_cast<const MmaSlot*>(slots[lane]);
    const unsigned group = lane / 4, quad = lane % 4;
    for (unsigned h = 0; h < 2; ++h) {
      for (unsigned r = 0; r < 4; ++r) {
        a[group + 8 * (r % 2)][2 * quad + 8 * (r / 2) + h] = half_of<T>(slot->a[r], h);
      }
      for (unsigned r = 0; r < 2; ++r) {
        b[2 * quad + 8 * r + h][group] = half_of<T>(slot->b[r], h);
      }
    }
  }
  multiply_and_scatter(slots, a, b);
}

inline void combine_m16n8k8_tf32(void* const* slots, unsigned) {
  double a[16][8], b[8][8];
  for (unsigned lane = 0; lane < 32; ++lane) {
    const auto* slot = static_cast<const MmaSlot*>(slots[lane]);
    const unsigned group = lane / 4, quad = lane % 4;
    for (unsigned r = 0; r < 4; ++r) {
      a[group + 8 * (r % 2)][quad + 4 * (r / 2)] = tf32_of(slot->a[r]);
    }
    for (unsigned r = 0; r < 2; ++r) b[quad + 4 * r][group] = tf32_of(slot->b[r]);
  }
  multiply_and_scatter(slots, a, b);
}

struct LdmatrixSlot {
  std::uint32_t* registers;
  const void* row;
};

template <int Count, bool Trans>
inline void combine_ldmatrix(void* const* slots, unsigned) {
  for (unsigned r = 0; r < Count; ++r) {
    std::uint16_t matrix[8][8];
    for (unsigned i = 0; i < 8; ++i) {
      std::memcpy(matrix[i], static_cast<const LdmatrixSlot*>(slots[8 * r + i])->row, 16);
    }
    for (unsigned lane = 0; lane < 32; ++lane) {
      const unsigned group = lane / 4, quad = lane % 4;
      const std::uint32_t low = Trans ? matrix[2 * quad][group] : matrix[group][2 * quad];
      const std::uint32_t high = Trans ? matrix[2 * quad + 1][group] : matrix[group][2 * quad + 1];
      static_cast<LdmatrixSlot*>(slots[lane])->registers[r] = low | high << 16;
    }
  }
}

template <int Count, bool Trans>
inline void ldmatrix(std::uint32_t* registers, const void* row, const Site& site) {
  if (lane_id() < 8u * Count) {
    check_aligned(row, 16, "ldmatrix row", site);
    check_shared(row, 16, "ldmatrix row", site);
  }
  LdmatrixSlot slot{registers, row};
  warp_collective("ldmatrix", kFullMask, &slot, combine_ldmatrix<Count, Trans>, site);
}

}  // namespace host

#endif

// D = A B + C for T = Half or BFloat16 with float accumulators; D and C may be the same array.
template <class T>
PW_DEVICE void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                            const float (&c)[4] PW_SITE_PARAM) {
  static_assert(std::is_same<T, Half>::value || std::is_same<T, BFloat16>::value,
                "mma_m16n8k16 multiplies Half or BFloat16");
#if defined(PATCHWORD_SIMT_HOST)
  host::MmaSlot slot{d, a, b, c};
  host::warp_collective("mma_m16n8k16", kFullMask, &slot, host::combine_m16n8k16<T>, site);
#else
  if constexpr (std::is_same<T, Half>::value) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]),
          "f"(c[2]), "f"(c[3]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]),
          "f"(c[2]), "f"(c[3]));
  }
#endif
}

// D = A B + C with tf32 operands (floats passed through to_tf32) and float accumulators.
PW_DEVICE void mma_m16n8k8_tf32(float (&d)[4], const std::uint32_t (&a)[4],
                                const std::uint32_t (&b)[2], const float (&c)[4] PW_SITE_PARAM) {
#if defined(PATCHWORD_SIMT_HOST)
  host::MmaSlot slot{d, a, b, c};
  host::warp_collective("mma_m16n8k8_tf32", kFullMask, &slot, host::combine_m16n8k8_tf32, site);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]),
        "f"(c[2]), "f"(c[3]));
#endif
}

// Rounds to the 10 fraction bits of tf32, ties away from zero; the result is a float's bits.
PW_DEVICE std::uint32_t to_tf32(float value) {
#if defined(PATCHWORD_SIMT_HOST)
  const std::uint32_t bits = bit_cast<std::uint32_t>(value);
  const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  return (finite ? bits + 0x1000u : bits) & 0xffffe000u;
#else
  std::uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
#endif
}

#if !defined(PATCHWORD_SIMT_HOST)
PW_DEVICE unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}
#endif

// Loads two 8 x 8 matrices of 16-bit elements; lanes 0-15 give 16-byte aligned row addresses.
template <bool Trans = false>
PW_DEVICE void ldmatrix_x2(std::uint32_t (&r)[2], const void* row PW_SITE_PARAM) {
#if defined(PATCHWORD_SIMT_HOST)
  host::ldmatrix<2, Trans>(r, row, site);
#else
  if constexpr (Trans) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
  }
#endif
}

// Loads four 8 x 8 matrices of 16-bit elements; every lane gives a 16-byte aligned row address.
template <bool Trans = false>
PW_DEVICE void ldmatrix_x4(std::uint32_t (&r)[4], const void* row PW_SITE_PARAM) {
#if defined(PATCHWORD_SIMT_HOST)
  host::ldmatrix<4, Trans>(r, row, site);
#else
  if constexpr (Trans) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  }
#endif
}

}  // namespace patchword::simt
