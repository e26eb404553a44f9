// A layer's weights as the extension has them.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "arrays.h"
#include "layer.h"

namespace elman {

inline void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(std::string("elman._engine: ") + what);
}

// Its place in the tables of kernels.
inline int cell_named(const std::string& name) {
  int cell = 0;
  while (cell < kernels().cells && name != kernels().float32[cell].name) ++cell;
  require(cell < kernels().cells, "unknown cell");
  return cell;
}

// The weights of one layer: for each direction w_ih, w_hh, b_ih, b_hh, w_hr. Packed when first
// used; the arrays must not change afterwards.
class LayerWeights {
 public:
  LayerWeights(const std::string& cell, std::vector<std::optional<In>> arrays)
      : cell_(cell_named(cell)), arrays_(std::move(arrays)) {
    require(arrays_.size() == kWeights || arrays_.size() == 2 * kWeights,
            "expected five arrays a direction");
    require(arrays_[0] && arrays_[0]->ndim() == 2 && arrays_[1] && arrays_[1]->ndim() == 2,
            "w_ih and w_hh are matrices");
    dtype_ = arrays_[0]->dtype();
    require(is_float64() || float_kernels(),
            "weights are float32, float64, float16, or bfloat16, also as uint16");
    const Kernel<float>& k = any_kernel();
    sizes_ = {arrays_[0]->shape(1), arrays_[1]->shape(0) / k.gates, arrays_[1]->shape(1)};
    const index rows = sizes_.H * k.gates;
    require(sizes_.P > 0, "there is a hidden unit");
    require(sizes_.P == sizes_.H || (k.has_c && sizes_.P < sizes_.H), "a weight's shape is off");
    const bool there[kWeights] = {true, true, bias(), bias(), sizes_.projected()};
    for (std::size_t i = 0; i < arrays_.size(); ++i) {
      auto& a = arrays_[i];
      require(a.has_value() == there[i % kWeights], "all biases or none, w_hr with a projection");
      if (!a) continue;
      require(a->dtype() == dtype_, "weights are of one dtype");
      require(has_shape_of(*a, i % kWeights, rows), "a weight's shape is off");
      a->make_contiguous();
      a->data();  // which throws where it was freed
    }
  }

  // What does not depend on the type of numbers may be asked of these.
  const Kernel<float>& any_kernel() const { return kernels().float32[cell_]; }
  int cell() const { return cell_; }
  const Sizes& sizes() const { return sizes_; }
  index hidden_size() const { return sizes_.H; }
  index output_size() const { return sizes_.P; }
  int directions() const { return static_cast<int>(arrays_.size() / kWeights); }
  bool has(std::size_t weight) const { return arrays_[weight].has_value(); }
  const In& array(std::size_t weight) const { return *arrays_[weight]; }
  // Of all that is not a weight: float64, or float32.
  bool is_float64() const { return dtype_ == nb::dtype<double>(); }
  bool is_half() const { return dtype_.bits == 16; }
  nb::dlpack::dtype dtype() const { return is_float64() ? dtype_ : nb::dtype<float>(); }

  // Has the array the shape of the weight of this number, in the order of struct Weights?
  template <class A>
  bool has_shape_of(const A& a, std::size_t weight, index rows) const {
    switch (weight) {
      case 0:
        return a.has_shape({rows, sizes_.D});
      case 1:
        return a.has_shape({rows, sizes_.P});
      case 4:
        return a.has_shape({sizes_.P, sizes_.H});
      default:
        return a.has_shape({rows});
    }
  }

  template <class T>
  const Kernel<T>& kernel() const {
    if constexpr (sizeof(T) == sizeof(double)) {
      return kernels().float64[cell_];
    } else {
      return float_kernels()[cell_];
    }
  }

  template <class T>
  const void* forward_panels(int direction) {
    std::call_once(forward_once_, [this] { pack<T>(forward_, true); });
    return forward_[direction].get();
  }

  template <class T>
  const T* backward_panels(int direction) {
    std::call_once(backward_once_, [this] { pack<T>(backward_, false); });
    return static_cast<const T*>(static_cast<void*>(backward_[direction].get()));
  }

 private:
  template <class T>
  void pack(Buffer<double> (&to)[2], bool forward) {
    const Kernel<T>& k = kernel<T>();
    const index bytes = forward ? k.forward_panels(sizes_) : k.backward_panels(sizes_);
    for (int d = 0; d < directions(); ++d) {
      Buffer<double> panels((bytes + 7) / 8);
      const std::size_t i = kWeights * d;
      const Weights w{data(i), data(i + 1), data(i + 2), data(i + 3), data(i + 4)};
      if (forward) {
        k.pack_forward(w, sizes_, panels.get());
      } else {
        k.pack_backward(w, sizes_, static_cast<T*>(static_cast<void*>(panels.get())));
      }
      to[d] = std::move(panels);
    }
  }

  // Null where weights are none of those.
  const Kernel<float>* float_kernels() const {
    const auto is_half = [&](nb::dlpack::dtype_code code) {
      return dtype_ == nb::dlpack::dtype{static_cast<std::uint8_t>(code), 16, 1};
    };
    if (dtype_ == nb::dtype<float>()) return kernels().float32;
    if (is_half(nb::dlpack::dtype_code::Float)) return kernels().float16;
    if (is_half(nb::dlpack::dtype_code::Bfloat) || is_half(nb::dlpack::dtype_code::UInt)) {
      return kernels().bfloat16;
    }
    return nullptr;
  }

  bool bias() const { return has(2); }
  const void* data(std::size_t i) const { return arrays_[i] ? arrays_[i]->data() : nullptr; }

  int cell_;
  std::vector<std::optional<In>> arrays_;
  Sizes sizes_;
  nb::dlpack::dtype dtype_;
  std::once_flag forward_once_, backward_once_;
  Buffer<double> forward_[2], backward_[2];
};

}  // namespace elman
