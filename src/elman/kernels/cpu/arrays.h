// Arrays as they come from Python, used where they lie: NumPy's, DLPack's capsules, and tensors of
// frameworks that have DLPack's exchange functions, which lend one in some tens of nanoseconds.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <memory>

#include "memory.h"
#include "system.h"

namespace elman {

namespace nb = nanobind;

// DLPack's DLManagedTensorVersioned.
// https://dmlc.github.io/dlpack/latest/c_api.html
struct ManagedTensor {
  std::uint32_t major, minor;
  void* context;
  void (*deleter)(ManagedTensor*);
  std::uint64_t flags;
  nb::dlpack::dltensor tensor;
};

// Its DLPackExchangeAPI, up to what is used of it. A type of tensors has it in a capsule. What is
// not 0 comes with a Python error.
struct ExchangeApi {
  std::uint32_t major, minor;
  ExchangeApi* previous;
  int (*allocate)();
  int (*take)();
  int (*give)(ManagedTensor* tensor, void** object);
  int (*lend)(void* object, nb::dlpack::dltensor* tensor);
};

// Of a type of tensors; null where it has none.
inline const ExchangeApi* exchange_api(nb::handle type) {
  static PyObject* const name = PyUnicode_InternFromString("__dlpack_c_exchange_api__");
  PyObject* const capsule = PyObject_GetAttr(type.ptr(), name);
  const void* const found =
      capsule ? PyCapsule_GetPointer(capsule, "dlpack_exchange_api") : nullptr;
  Py_XDECREF(capsule);
  PyErr_Clear();
  const ExchangeApi* const api = static_cast<const ExchangeApi*>(found);
  return api && api->major == 1 ? api : nullptr;
}

// An array in the CPU's memory. Access: nb::ro, where it is only read.
template <class... Access>
class Array {
 public:
  index ndim() const { return ndim_; }
  index shape(index axis) const { return shape_[axis]; }
  index stride(index axis) const { return stride_[axis]; }
  nb::dlpack::dtype dtype() const { return dtype_; }
  void* data() const {
    if (size() > 0 && !is_mapped(data_)) throw nb::buffer_error("elman._engine: freed memory");
    return data_;
  }

  bool has_shape(std::initializer_list<index> shape) const {
    return std::equal(shape.begin(), shape.end(), shape_, shape_ + ndim_);
  }
  // Do the features of a row lie side by side?
  bool rows_lie_together() const {
    if (size() == 0) return true;
    return ndim_ > 0 && (stride_[ndim_ - 1] == 1 || shape_[ndim_ - 1] < 2) && is_aligned();
  }
  bool is_contiguous() const {
    if (size() == 0) return true;
    index expected = 1;
    for (index axis = ndim_; axis-- > 0; expected *= shape_[axis]) {
      if (shape_[axis] > 1 && stride_[axis] != expected) return false;
    }
    return is_aligned();
  }

  // What is read and does not lie as it should is copied.
  void lay_rows_together() {
    if (!rows_lie_together()) copy();
  }
  void make_contiguous() {
    if (!is_contiguous()) copy();
  }

  // False where the object is no such array.
  bool borrow(nb::handle object, std::uint32_t flags, nb::detail::cleanup_list* cleanup) noexcept {
    const bool exchanged =
        !PyObject_CheckBuffer(object.ptr()) && !PyCapsule_CheckExact(object.ptr());
    const ExchangeApi* const api = exchanged ? exchange_api(object.type()) : nullptr;
    if (!api) {
      nb::detail::make_caster<Lent> caster;
      if (!caster.from_python(object, flags, cleanup)) return false;
      lent_ = caster.value;
      return see(lent_.data(), lent_.dtype(), lent_.ndim(), lent_.shape_ptr(), lent_.stride_ptr());
    }
    nb::dlpack::dltensor t;
    if (api->lend(object.ptr(), &t) != 0) {
      PyErr_Clear();
      return false;
    }
    object_ = nb::borrow(object);
    return t.device.device_type == nb::device::cpu::value &&
           see(static_cast<char*>(t.data) + t.byte_offset, t.dtype, t.ndim, t.shape, t.strides);
  }

 private:
  static constexpr index kAxes = 4;
  using Lent = nb::ndarray<nb::device::cpu, Access...>;

  bool see(const void* data, nb::dlpack::dtype dtype, index ndim, const std::int64_t* shape,
           const std::int64_t* strides) {
    if (ndim > kAxes || dtype.bits % 8 != 0) return false;
    data_ = const_cast<void*>(data);
    dtype_ = dtype;
    ndim_ = ndim;
    std::copy_n(shape, ndim, shape_);
    std::copy_n(strides, ndim, stride_);
    return true;
  }

  index item_size() const { return dtype_.bits / 8; }
  index size() const {
    index n = 1;
    for (index axis = 0; axis < ndim_; ++axis) n *= shape_[axis];
    return n;
  }
  bool is_aligned() const {
    return reinterpret_cast<std::uintptr_t>(data_) % static_cast<std::uintptr_t>(item_size()) == 0;
  }

  void copy() {
    copy_ = std::make_shared<Memory>(static_cast<std::size_t>(size() * item_size()));
    char* to = static_cast<char*>(copy_->get());
    index at[kAxes] = {};
    for (index i = 0; i < size(); ++i, to += item_size()) {
      index from = 0;
      for (index axis = 0; axis < ndim_; ++axis) from += at[axis] * stride_[axis];
      std::memcpy(to, static_cast<const char*>(data()) + from * item_size(), item_size());
      for (index axis = ndim_; axis-- > 0 && ++at[axis] == shape_[axis];) at[axis] = 0;
    }
    data_ = copy_->get();
    for (index axis = ndim_, stride = 1; axis-- > 0; stride *= shape_[axis]) stride_[axis] = stride;
  }

  void* data_ = nullptr;
  nb::dlpack::dtype dtype_{};
  index ndim_ = 0, shape_[kAxes] = {}, stride_[kAxes] = {};
  // Whose memory it is: one of these.
  nb::object object_;
  Lent lent_;
  std::shared_ptr<Memory> copy_;
};

using In = Array<nb::ro>;
using Out = Array<>;

}  // namespace elman

namespace nanobind::detail {

template <class... Access>
struct type_caster<elman::Array<Access...>> {
  NB_TYPE_CASTER(elman::Array<Access...>, const_name("typing.Any"))

  bool from_python(handle src, std::uint32_t flags, cleanup_list* cleanup) noexcept {
    return value.borrow(src, flags, cleanup);
  }
};

}  // namespace nanobind::detail
