// The extension elman._engine: typed arrays in and out, the interpreter's lock released while the
// kernels run.
//
// It checks what memory safety needs. What a user may get wrong is checked, and said in the user's
// terms, in spec.py.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <pthread.h>

#include <atomic>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>

#include "arithmetic.h"
#include "layer.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace elman {
namespace {

using In = nb::ndarray<nb::ro, nb::device::cpu>;
using Out = nb::ndarray<nb::device::cpu>;
using Lengths = nb::ndarray<const index, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Resets = nb::ndarray<const bool, nb::ndim<2>, nb::device::cpu>;

// The thread on which Python runs the handlers of signals.
std::atomic<unsigned long> main_thread;

void find_main_thread() {
  main_thread = nb::cast<unsigned long>(
      nb::module_::import_("threading").attr("main_thread")().attr("ident"));
  pthread_atfork(nullptr, nullptr, [] { main_thread = PyThread_get_thread_ident(); });
}

// During a long call: Ctrl-C, or what another signal's handler raises.
void handle_signals() {
  if (PyThread_get_thread_ident() != main_thread) return;
  nb::gil_scoped_acquire locked;
  if (PyErr_CheckSignals() != 0) throw nb::python_error();
}

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(std::string("elman._engine: ") + what);
}

Cell cell_named(const std::string& name) {
  if (name == "rnn_tanh") return Cell::rnn_tanh;
  if (name == "rnn_relu") return Cell::rnn_relu;
  require(name == "gru", "unknown cell");
  return Cell::gru;
}

template <class A>
bool has_shape(const A& a, std::initializer_list<index> shape) {
  if (a.ndim() != shape.size()) return false;
  std::size_t axis = 0;
  for (const index n : shape) {
    if (static_cast<index>(a.shape(axis++)) != n) return false;
  }
  return true;
}

template <class A>
bool rows_lie_together(const A& a) {
  return a.size() == 0 ||
         (a.ndim() > 0 && (a.stride(a.ndim() - 1) == 1 || a.shape(a.ndim() - 1) < 2));
}

template <class A>
bool is_contiguous(const A& a) {
  if (a.size() == 0) return true;
  index expected = 1;
  for (std::size_t axis = a.ndim(); axis-- > 0; expected *= a.shape(axis)) {
    if (a.shape(axis) > 1 && a.stride(axis) != expected) return false;
  }
  return true;
}

// The weights of one layer: for each direction w_ih, w_hh, b_ih, b_hh. Packed when first used; the
// arrays must not change afterwards.
class LayerWeights {
 public:
  LayerWeights(const std::string& cell, std::vector<std::optional<In>> arrays)
      : cell_(cell_named(cell)), arrays_(std::move(arrays)) {
    require(arrays_.size() == 4 || arrays_.size() == 8, "expected four arrays a direction");
    require(arrays_[0] && arrays_[0]->ndim() == 2 && arrays_[1] && arrays_[1]->ndim() == 2,
            "w_ih and w_hh are matrices");
    D_ = arrays_[0]->shape(1);
    H_ = arrays_[1]->shape(1);
    require(H_ > 0, "there is a hidden unit");
    dtype_ = arrays_[0]->dtype();
    require(dtype_ == nb::dtype<double>() || float_kernels(),
            "weights are float32, float64, float16, or bfloat16, also as uint16");
    const index rows = H_ * kernels().float32[static_cast<int>(cell_)].gates;
    const bool bias = arrays_[2].has_value();
    for (std::size_t i = 0; i < arrays_.size(); ++i) {
      const auto& a = arrays_[i];
      const bool is_bias = i % 4 >= 2;
      require(a.has_value() == (!is_bias || bias), "all biases or none");
      if (!a) continue;
      require(a->dtype() == dtype_ && is_contiguous(*a), "weights are contiguous and of one dtype");
      require(is_bias ? has_shape(*a, {rows}) : has_shape(*a, {rows, i % 4 == 0 ? D_ : H_}),
              "a weight's shape is off");
    }
  }

  Cell cell() const { return cell_; }
  index input_size() const { return D_; }
  index hidden_size() const { return H_; }
  int directions() const { return static_cast<int>(arrays_.size() / 4); }
  bool bias() const { return arrays_[2].has_value(); }
  // Of all that is not a weight: float64, or float32.
  nb::dlpack::dtype dtype() const {
    return dtype_ == nb::dtype<double>() ? dtype_ : nb::dtype<float>();
  }

  template <class T>
  const Kernel<T>& kernel() const {
    if constexpr (sizeof(T) == sizeof(double)) {
      return kernels().float64[static_cast<int>(cell_)];
    } else {
      return float_kernels()[static_cast<int>(cell_)];
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
    const index bytes = forward ? k.forward_panels(D_, H_) : k.backward_panels(D_, H_);
    for (int d = 0; d < directions(); ++d) {
      Buffer<double> panels((bytes + 7) / 8);
      const Weights w{data(4 * d), data(4 * d + 1), data(4 * d + 2), data(4 * d + 3)};
      if (forward) {
        k.pack_forward(w, D_, H_, panels.get());
      } else {
        k.pack_backward(w, D_, H_, static_cast<T*>(static_cast<void*>(panels.get())));
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

  const void* data(std::size_t i) const { return arrays_[i] ? arrays_[i]->data() : nullptr; }

  Cell cell_;
  std::vector<std::optional<In>> arrays_;
  index D_, H_;
  nb::dlpack::dtype dtype_;
  std::once_flag forward_once_, backward_once_;
  Buffer<double> forward_[2], backward_[2];
};

// What the arrays of one call have in common.
struct Call {
  LayerWeights& weights;
  Schedule schedule;
  bool packed;
  index D = weights.input_size(), H = weights.hidden_size(), directions = weights.directions();
  index steps = schedule.plan().steps, batch = schedule.plan().batch;
  index rows = packed ? schedule.rows() : steps * batch;  // of the kept arrays

  Call(LayerWeights& w, const In& x, const std::optional<Lengths>& lengths,
       const std::optional<Lengths>& batch_sizes, const std::optional<Resets>& reset)
      : weights(w),
        schedule(titled_schedule(w, x, lengths, batch_sizes, reset)),
        packed(batch_sizes.has_value()) {}

  // What Schedule refuses is the user's to mend: say which layer.
  static Schedule titled_schedule(const LayerWeights& w, const In& x,
                                  const std::optional<Lengths>& lengths,
                                  const std::optional<Lengths>& batch_sizes,
                                  const std::optional<Resets>& reset) {
    try {
      return make_schedule(x, lengths, batch_sizes, reset);
    } catch (const std::invalid_argument& e) {
      throw std::invalid_argument((w.cell() == Cell::gru ? "GRU: " : "RNN: ") +
                                  std::string(e.what()));
    }
  }

  static Schedule packed_schedule(const Lengths& batch_sizes, index rows) {
    const auto require_sum = [&](bool holds) {
      if (holds) return;
      throw std::invalid_argument("batch_sizes must add up to the packed rows, " +
                                  std::to_string(rows));
    };
    const index steps = batch_sizes.shape(0);
    // Before memory is taken for as many rows as they say.
    require_sum(steps == 0 || batch_sizes.data()[0] <= rows);
    Schedule schedule = Schedule::packed(steps, batch_sizes.data());
    require_sum(schedule.rows() == rows);
    return schedule;
  }

  static Schedule make_schedule(const In& x, const std::optional<Lengths>& lengths,
                                const std::optional<Lengths>& batch_sizes,
                                const std::optional<Resets>& reset) {
    if (batch_sizes) {
      require(!lengths && !reset, "packed input takes no lengths and no reset");
      require(x.ndim() == 2, "packed x has two axes");
      return packed_schedule(*batch_sizes, static_cast<index>(x.shape(0)));
    }
    require(x.ndim() == 3, "x has three axes");
    const index steps = x.shape(0), batch = x.shape(1);
    if (lengths) require(has_shape(*lengths, {batch}), "lengths is (N,)");
    if (!reset) return Schedule::dense(steps, batch, lengths ? lengths->data() : nullptr, {});
    require(has_shape(*reset, {steps, batch}), "reset is (L, N)");
    return Schedule::dense(steps, batch, lengths ? lengths->data() : nullptr,
                           {reset->data(), reset->stride(0), reset->stride(1)});
  }

  template <class A>
  void check(const A& a, const char* what) const {
    require(a.dtype() == weights.dtype() && rows_lie_together(a), what);
  }

  // (L, N, features), or (rows, features) where packed.
  template <class T, class A>
  Sequence<T> sequence(const A& a, index features, const char* what) const {
    check(a, what);
    T* const data = static_cast<T*>(a.data());
    if (packed) {
      require(has_shape(a, {rows, features}), what);
      return {data, 0, static_cast<index>(a.stride(0)), schedule.plan().first};
    }
    require(has_shape(a, {steps, batch, features}), what);
    return {data, static_cast<index>(a.stride(0)), static_cast<index>(a.stride(1)), nullptr};
  }

  // (directions, N, H), one direction of it.
  template <class T, class A>
  Rows<T> states(const A& a, int direction, const char* what) const {
    check(a, what);
    require(has_shape(a, {directions, batch, H}), what);
    return {static_cast<T*>(a.data()) + direction * a.stride(0), static_cast<index>(a.stride(1))};
  }

  // (directions, rows, per * H) kept for backward, one direction of it.
  template <class T, class A>
  T* kept(const A& a, index per, int direction, const char* what) const {
    check(a, what);
    require(is_contiguous(a) && has_shape(a, {directions, rows, per * H}), what);
    return static_cast<T*>(a.data()) + direction * rows * per * H;
  }
};

template <class T>
Sequence<T> columns(Sequence<T> s, index from) {
  if (s.data) s.data += from;
  return s;
}

template <class T>
void forward_as(const Call& call, const In& x, const Out& output, const Out& h_n,
                const std::optional<In>& h_0, const std::optional<Out>& gates,
                const std::optional<Out>& states, index threads) {
  LayerWeights& w = call.weights;
  const Kernel<T>& k = w.kernel<T>();
  Forward<T> f[2] = {};
  for (int d = 0; d < w.directions(); ++d) {
    f[d].input_size = call.D;
    f[d].hidden_size = call.H;
    f[d].reverse = d == 1;
    f[d].x = call.sequence<const T>(x, call.D, "x");
    f[d].output = columns(call.sequence<T>(output, call.directions * call.H, "output"), d * call.H);
    f[d].h_n = call.states<T>(h_n, d, "h_n");
    if (h_0) f[d].h_0 = call.states<const T>(*h_0, d, "h_0");
    if (gates) f[d].gates = call.kept<T>(*gates, k.kept, d, "gates");
    if (states) f[d].states = call.kept<T>(*states, 1, d, "states");
  }
  nb::gil_scoped_release unlocked;
  const StandardArithmetic standard;
  for (int d = 0; d < w.directions(); ++d) f[d].panels = w.forward_panels<T>(d);
  run_forward(k, call.schedule, f, w.directions(), threads, handle_signals);
}

void forward(LayerWeights& weights, const In& x, const Out& output, const Out& h_n,
             const std::optional<In>& h_0, const std::optional<Lengths>& lengths,
             const std::optional<Resets>& reset, const std::optional<Lengths>& batch_sizes,
             const std::optional<Out>& gates, const std::optional<Out>& states, index threads) {
  const Call call(weights, x, lengths, batch_sizes, reset);
  if (weights.dtype() == nb::dtype<float>()) {
    forward_as<float>(call, x, output, h_n, h_0, gates, states, threads);
  } else {
    forward_as<double>(call, x, output, h_n, h_0, gates, states, threads);
  }
}

template <class T>
void backward_as(const Call& call, const In& x, const std::optional<In>& gates, const In& states,
                 const std::optional<In>& d_output, const std::optional<In>& d_h_n,
                 const std::optional<Out>& d_x, const Out& d_h_0,
                 const std::optional<std::vector<std::optional<Out>>>& d_weights, index threads) {
  LayerWeights& w = call.weights;
  const Kernel<T>& k = w.kernel<T>();
  Backward<T> b[2] = {};
  for (int d = 0; d < w.directions(); ++d) {
    b[d].input_size = call.D;
    b[d].hidden_size = call.H;
    b[d].reverse = d == 1;
    b[d].x = call.sequence<const T>(x, call.D, "x");
    if (gates) b[d].gates = call.kept<const T>(*gates, k.kept, d, "gates");
    b[d].states = call.kept<const T>(states, 1, d, "states");
    if (d_output) {
      b[d].d_output = columns(
          call.sequence<const T>(*d_output, call.directions * call.H, "d_output"), d * call.H);
    }
    if (d_h_n) b[d].d_h_n = call.states<const T>(*d_h_n, d, "d_h_n");
    b[d].d_h_0 = call.states<T>(d_h_0, d, "d_h_0");
    if (d_x) {
      require(d_x->ndim() == x.ndim() + 1 && static_cast<index>(d_x->shape(0)) == call.directions &&
                  is_contiguous(*d_x) && d_x->dtype() == w.dtype(),
              "d_x is (directions, *x.shape), contiguous");
      for (std::size_t axis = 0; axis < x.ndim(); ++axis) {
        require(d_x->shape(axis + 1) == x.shape(axis), "d_x is (directions, *x.shape), contiguous");
      }
      b[d].d_x = {static_cast<T*>(d_x->data()) + d * call.rows * call.D, call.batch * call.D,
                  call.D, call.packed ? call.schedule.plan().first : nullptr};
    }
    if (d_weights) {
      const index rows = k.gates * call.H;
      require(static_cast<index>(d_weights->size()) == 4 * call.directions,
              "four gradients a direction");
      T* to[4] = {};
      for (index i = 0; i < 4; ++i) {
        const std::optional<Out>& a = (*d_weights)[d * 4 + i];
        require(a.has_value() == (i < 2 || w.bias()), "one gradient a weight");
        if (!a) continue;
        require(
            a->dtype() == w.dtype() && is_contiguous(*a) &&
                (i >= 2 ? has_shape(*a, {rows}) : has_shape(*a, {rows, i == 0 ? call.D : call.H})),
            "a weight gradient's shape is off");
        to[i] = static_cast<T*>(a->data());
      }
      b[d].d_w_ih = to[0];
      b[d].d_w_hh = to[1];
      b[d].d_b_ih = to[2];
      b[d].d_b_hh = to[3];
    }
  }
  nb::gil_scoped_release unlocked;
  const StandardArithmetic standard;
  for (int d = 0; d < w.directions(); ++d) {
    b[d].panels = w.backward_panels<T>(d);
    if (!gates) b[d].forward_panels = w.forward_panels<T>(d);
  }
  run_backward(k, call.schedule, b, w.directions(), threads, handle_signals);
}

void backward(LayerWeights& weights, const In& x, const std::optional<In>& gates, const In& states,
              const std::optional<In>& d_output, const std::optional<In>& d_h_n,
              const std::optional<Out>& d_x, const Out& d_h_0,
              const std::optional<std::vector<std::optional<Out>>>& d_weights,
              const std::optional<Lengths>& lengths, const std::optional<Resets>& reset,
              const std::optional<Lengths>& batch_sizes, index threads) {
  const Call call(weights, x, lengths, batch_sizes, reset);
  if (weights.dtype() == nb::dtype<float>()) {
    backward_as<float>(call, x, gates, states, d_output, d_h_n, d_x, d_h_0, d_weights, threads);
  } else {
    backward_as<double>(call, x, gates, states, d_output, d_h_n, d_x, d_h_0, d_weights, threads);
  }
}

}  // namespace
}  // namespace elman

// nanobind's own initialisation, under another name: run in a second interpreter, it would break
// the module of the first.
#define PyInit__engine init_in_main_interpreter
NB_MODULE(_engine, m) {
  using namespace elman;
  nb::set_leak_warnings(false);  // a layer may live until the process ends
  m.doc() =
      "The compiled engine: one layer of one or two directions, forward and backward, on the CPU.";
  try {
    kernels();
  } catch (const std::exception& e) {
    throw nb::import_error(e.what());
  }
  find_main_thread();
  m.def(
      "isa", [] { return kernels().name; },
      "The instruction set in use: portable, avx2 or avx512.");
  nb::class_<LayerWeights>(
      m, "Weights", "One layer's weights, packed when first used; they must not change afterwards.")
      .def(nb::init<const std::string&, std::vector<std::optional<In>>>(), "cell"_a, "arrays"_a)
      .def_prop_ro("directions", &LayerWeights::directions)
      .def_prop_ro("hidden_size", &LayerWeights::hidden_size);
  m.def("forward", &forward, "weights"_a, "x"_a, "output"_a, "h_n"_a, "h_0"_a.none(),
        "lengths"_a.none(), "reset"_a.none(), "batch_sizes"_a.none(), "gates"_a.none(),
        "states"_a.none(), "threads"_a,
        "Fills output (L, N, directions*H) and h_n (directions, N, H), and what backward needs "
        "where asked: gates "
        "(directions, rows, kept*H) and states (directions, rows, H), rows = L*N or those of the "
        "packed x.");
  m.def("backward", &backward, "weights"_a, "x"_a, "gates"_a.none(), "states"_a,
        "d_output"_a.none(), "d_h_n"_a.none(), "d_x"_a.none(), "d_h_0"_a, "d_weights"_a.none(),
        "lengths"_a.none(), "reset"_a.none(), "batch_sizes"_a.none(), "threads"_a,
        "Fills d_x (directions, *x.shape), d_h_0 (directions, N, H) and d_weights, arrays as the "
        "weights are.");
  m.def("poison_buffers", &poison_buffers, "on"_a,
        "For tests: fill scratch memory with NaN before use.");
}
#undef PyInit__engine

extern "C" NB_EXPORT PyObject* PyInit__engine() {
  if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
    PyErr_SetString(PyExc_ImportError, "elman._engine runs in the main interpreter only");
    return nullptr;
  }
  return init_in_main_interpreter();
}
