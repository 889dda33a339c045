// SPDX-License-Identifier: Apache-2.0
// How Python hands numbers to a binding: tuples of a fixed length, and where to work.
//
// A tiny call is dominated by what happens to its arguments, so tuples are read item by item.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <type_traits>

namespace patchword::bindings {

// A Python tuple of exactly kCount numbers: sizes, strides, addresses or tags.
template <typename T, int kCount>
struct Numbers {
  T items[kCount] = {};

  T operator[](int i) const { return items[i]; }
  void copy_to(int64_t (&target)[kCount]) const {
    for (int i = 0; i < kCount; ++i) target[i] = items[i];
  }
};

template <int kCount>
using Integers = Numbers<int64_t, kCount>;
template <int kCount>
using Addresses = Numbers<uintptr_t, kCount>;
template <int kCount>
using Reals = Numbers<double, kCount>;

// The first `count` items of a tuple; false, with no Python error set, where one is no number.
template <typename T>
bool read_numbers(PyObject* tuple, T* target, Py_ssize_t count) {
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* item = PyTuple_GET_ITEM(tuple, i);
    if constexpr (std::is_floating_point_v<T>) {
      target[i] = PyFloat_AsDouble(item);
    } else {
      target[i] = static_cast<T>(PyLong_AsLongLong(item));
    }
  }
  if (PyErr_Occurred() == nullptr) return true;
  PyErr_Clear();
  return false;
}

// Where to work: the first argument of an entry, made by patchword/_library.py.
struct Launch {
  int device;
  uintptr_t stream;
  int threads;
  uintptr_t scratch;  // 0 for none
  int64_t scratch_bytes;
};

}  // namespace patchword::bindings

namespace pybind11::detail {

template <typename T, int kCount>
struct type_caster<patchword::bindings::Numbers<T, kCount>> {
  using Numbers = patchword::bindings::Numbers<T, kCount>;
  PYBIND11_TYPE_CASTER(Numbers, const_name("tuple"));

  bool load(handle source, bool) {
    return PyTuple_Check(source.ptr()) && PyTuple_GET_SIZE(source.ptr()) == kCount &&
           patchword::bindings::read_numbers(source.ptr(), value.items, kCount);
  }
};

template <>
struct type_caster<patchword::bindings::Launch> {
  PYBIND11_TYPE_CASTER(patchword::bindings::Launch, const_name("tuple"));

  bool load(handle source, bool) {
    int64_t item[5];
    if (!PyTuple_Check(source.ptr()) || PyTuple_GET_SIZE(source.ptr()) != 5 ||
        !patchword::bindings::read_numbers(source.ptr(), item, 5)) {
      return false;
    }
    value = {static_cast<int>(item[0]), static_cast<uintptr_t>(item[1]), static_cast<int>(item[2]),
             static_cast<uintptr_t>(item[3]), item[4]};
    return true;
  }
};

}  // namespace pybind11::detail
