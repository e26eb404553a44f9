// The extension elman._engine: typed arrays in and out, the interpreter's lock released while the
// kernels run.
//
// It checks what memory safety needs. What a user may get wrong is checked, and said in the user's
// terms, in spec.py.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "arithmetic.h"
#include "arrays.h"
#include "interpreter.h"
#include "layer.h"
#include "modules.h"
#include "tensors.h"
#include "threads.h"
#include "weights.h"
#include "xla.h"

using namespace nanobind::literals;

namespace elman {
namespace {

// What the arrays of one call have in common.
struct Call {
  LayerWeights& weights;
  Schedule schedule;
  bool packed;
  Sizes sizes = weights.sizes();
  index S = weights.any_kernel().state_size(sizes);
  index directions = weights.directions();
  index steps = schedule.plan().steps, batch = schedule.plan().batch;
  index rows = packed ? schedule.rows() : steps * batch;  // of the kept arrays

  Call(LayerWeights& w, const In& x, const std::optional<In>& lengths,
       const std::optional<In>& batch_sizes, const std::optional<In>& reset)
      : weights(w),
        schedule(titled_schedule(w, x, lengths, batch_sizes, reset)),
        packed(batch_sizes.has_value()) {}

  // What Schedule refuses is the user's to mend: say which layer.
  static Schedule titled_schedule(const LayerWeights& w, const In& x,
                                  const std::optional<In>& lengths,
                                  const std::optional<In>& batch_sizes,
                                  const std::optional<In>& reset) {
    try {
      return make_schedule(x, lengths, batch_sizes, reset);
    } catch (const std::invalid_argument& e) {
      throw std::invalid_argument(std::string(w.any_kernel().kind) + ": " + e.what());
    }
  }

  static Schedule packed_schedule(const In& batch_sizes, index rows) {
    const index* const sizes = static_cast<const index*>(batch_sizes.data());
    const auto require_sum = [&](bool holds) {
      if (holds) return;
      throw std::invalid_argument("batch_sizes must add up to the packed rows, " +
                                  std::to_string(rows));
    };
    const index steps = batch_sizes.shape(0);
    // Before memory is taken for as many rows as they say.
    require_sum(steps == 0 || sizes[0] <= rows);
    Schedule schedule = Schedule::packed(steps, sizes);
    require_sum(schedule.rows() == rows);
    return schedule;
  }

  static Schedule make_schedule(const In& x, const std::optional<In>& lengths,
                                const std::optional<In>& batch_sizes,
                                const std::optional<In>& reset) {
    for (const std::optional<In>* a : {&lengths, &batch_sizes}) {
      require(!*a || ((*a)->dtype() == nb::dtype<index>() && (*a)->ndim() == 1 &&
                      (*a)->is_contiguous()),
              "lengths and batch_sizes are int64, with one axis");
    }
    if (batch_sizes) {
      require(!lengths && !reset, "packed input takes no lengths and no reset");
      require(x.ndim() == 2, "packed x has two axes");
      return packed_schedule(*batch_sizes, static_cast<index>(x.shape(0)));
    }
    require(x.ndim() == 3, "x has three axes");
    const index steps = x.shape(0), batch = x.shape(1);
    if (lengths) require(lengths->has_shape({batch}), "lengths is (N,)");
    const index* const each = lengths ? static_cast<const index*>(lengths->data()) : nullptr;
    if (!reset) return Schedule::dense(steps, batch, each, {});
    require(reset->has_shape({steps, batch}) && reset->dtype() == nb::dtype<bool>(),
            "reset is (L, N), booleans");
    return Schedule::dense(
        steps, batch, each,
        {static_cast<const bool*>(reset->data()), reset->stride(0), reset->stride(1)});
  }

  template <class A>
  void check(const A& a, const char* what) const {
    require(a.dtype() == weights.dtype() && a.rows_lie_together(), what);
  }

  // (L, N, features), or (rows, features) where packed.
  template <class T, class A>
  Sequence<T> sequence(const A& a, index features, const char* what) const {
    check(a, what);
    T* const data = static_cast<T*>(a.data());
    if (packed) {
      require(a.has_shape({rows, features}), what);
      return {data, 0, static_cast<index>(a.stride(0)), schedule.plan().first};
    }
    require(a.has_shape({steps, batch, features}), what);
    return {data, static_cast<index>(a.stride(0)), static_cast<index>(a.stride(1)), nullptr};
  }

  // The columns of one direction's output: P, or S where it holds whole states.
  template <class A>
  index width(const A& output) const {
    if (output.ndim() == 0) return sizes.P;
    return static_cast<index>(output.shape(output.ndim() - 1)) == directions * S ? S : sizes.P;
  }

  // (directions, N, S), one direction of it.
  template <class T, class A>
  Rows<T> states(const A& a, int direction, const char* what) const {
    check(a, what);
    require(a.has_shape({directions, batch, S}), what);
    return {static_cast<T*>(a.data()) + direction * a.stride(0), static_cast<index>(a.stride(1))};
  }

  // (directions, count, features) kept for backward, one direction of it.
  template <class T, class A>
  T* kept(const A& a, index count, index features, int direction, const char* what) const {
    check(a, what);
    require(a.is_contiguous() && a.has_shape({directions, count, features}), what);
    return static_cast<T*>(a.data()) + direction * count * features;
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
    f[d].sizes = call.sizes;
    f[d].reverse = d == 1;
    f[d].x = call.sequence<const T>(x, call.sizes.D, "x");
    const index width = call.width(output);
    f[d].output = columns(call.sequence<T>(output, call.directions * width, "output"), d * width);
    f[d].whole = width > call.sizes.P;
    f[d].h_n = call.states<T>(h_n, d, "h_n");
    if (h_0) f[d].h_0 = call.states<const T>(*h_0, d, "h_0");
    if (gates) f[d].gates = call.kept<T>(*gates, call.rows, k.kept * call.sizes.H, d, "gates");
    if (states) f[d].states = call.kept<T>(*states, call.batch + call.rows, call.S, d, "states");
  }
  nb::gil_scoped_release unlocked;
  const StandardArithmetic standard;
  for (int d = 0; d < w.directions(); ++d) f[d].panels = w.forward_panels<T>(d);
  run_forward(k, call.schedule, f, w.directions(), threads, handle_signals);
}

// What is read need not lie as the kernels want it.
void lay_rows_together(std::initializer_list<std::optional<In>*> arrays) {
  for (std::optional<In>* a : arrays) {
    if (*a) (*a)->lay_rows_together();
  }
}

void forward(LayerWeights& weights, In x, const Out& output, const Out& h_n, std::optional<In> h_0,
             std::optional<In> lengths, const std::optional<In>& reset,
             std::optional<In> batch_sizes, const std::optional<Out>& gates,
             const std::optional<Out>& states, index threads) {
  x.lay_rows_together();
  lay_rows_together({&h_0, &lengths, &batch_sizes});
  const Call call(weights, x, lengths, batch_sizes, reset);
  if (!weights.is_float64()) {
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
    const Sizes& s = b[d].sizes = call.sizes;
    b[d].reverse = d == 1;
    b[d].x = call.sequence<const T>(x, s.D, "x");
    if (gates) b[d].gates = call.kept<const T>(*gates, call.rows, k.kept * s.H, d, "gates");
    b[d].states = call.kept<const T>(states, call.batch + call.rows, call.S, d, "states");
    if (d_output) {
      const index width = call.width(*d_output);
      b[d].d_output = columns(
          call.sequence<const T>(*d_output, call.directions * width, "d_output"), d * width);
      b[d].whole = width > s.P;
    }
    if (d_h_n) b[d].d_h_n = call.states<const T>(*d_h_n, d, "d_h_n");
    b[d].d_h_0 = call.states<T>(d_h_0, d, "d_h_0");
    if (d_x) {
      require(d_x->ndim() == x.ndim() + 1 && static_cast<index>(d_x->shape(0)) == call.directions &&
                  d_x->is_contiguous() && d_x->dtype() == w.dtype(),
              "d_x is (directions, *x.shape), contiguous");
      for (std::size_t axis = 0; axis < x.ndim(); ++axis) {
        require(d_x->shape(axis + 1) == x.shape(axis), "d_x is (directions, *x.shape), contiguous");
      }
      b[d].d_x = {static_cast<T*>(d_x->data()) + d * call.rows * s.D, call.batch * s.D, s.D,
                  call.packed ? call.schedule.plan().first : nullptr};
    }
    if (d_weights) {
      require(static_cast<index>(d_weights->size()) == kWeights * call.directions,
              "five gradients a direction");
      T* to[kWeights] = {};
      for (std::size_t i = 0; i < kWeights; ++i) {
        const std::optional<Out>& a = (*d_weights)[d * kWeights + i];
        require(a.has_value() == w.has(i), "one gradient a weight");
        if (!a) continue;
        require(
            a->dtype() == w.dtype() && a->is_contiguous() && w.has_shape_of(*a, i, k.gates * s.H),
            "a weight gradient's shape is off");
        to[i] = static_cast<T*>(a->data());
      }
      b[d].d_w_ih = to[0];
      b[d].d_w_hh = to[1];
      b[d].d_b_ih = to[2];
      b[d].d_b_hh = to[3];
      b[d].d_w_hr = to[4];
    }
  }
  nb::gil_scoped_release unlocked;
  const StandardArithmetic standard;
  for (int d = 0; d < w.directions(); ++d) {
    b[d].panels = w.backward_panels<T>(d);
    if (k.kept > 0 && !gates) b[d].forward_panels = w.forward_panels<T>(d);
  }
  run_backward(k, call.schedule, b, w.directions(), threads, handle_signals);
}

void backward(LayerWeights& weights, In x, std::optional<In> gates, In states,
              std::optional<In> d_output, std::optional<In> d_h_n, const std::optional<Out>& d_x,
              const Out& d_h_0, const std::optional<std::vector<std::optional<Out>>>& d_weights,
              std::optional<In> lengths, const std::optional<In>& reset,
              std::optional<In> batch_sizes, index threads) {
  x.lay_rows_together();
  lay_rows_together({&d_output, &d_h_n, &lengths, &batch_sizes});
  states.make_contiguous();
  if (gates) gates->make_contiguous();
  const Call call(weights, x, lengths, batch_sizes, reset);
  if (!weights.is_float64()) {
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
      .def_prop_ro("hidden_size", &LayerWeights::hidden_size)
      .def_prop_ro("output_size", &LayerWeights::output_size)
      .def_prop_ro("is_float64", &LayerWeights::is_float64, "Whether all else is, or float32.");
  m.def("forward", &forward, "weights"_a, "x"_a, "output"_a, "h_n"_a, "h_0"_a.none(),
        "lengths"_a.none(), "reset"_a.none(), "batch_sizes"_a.none(), "gates"_a.none(),
        "states"_a.none(), "threads"_a,
        "Fills output (L, N, directions*P), or (L, N, directions*S) with every state, and the "
        "states h_n (directions, N, S), and what backward needs where asked: gates (directions, "
        "rows, kept*H) and states (directions, N + rows, S), rows = L*N or those of the packed x.");
  m.def("backward", &backward, "weights"_a, "x"_a, "gates"_a.none(), "states"_a,
        "d_output"_a.none(), "d_h_n"_a.none(), "d_x"_a.none(), "d_h_0"_a, "d_weights"_a.none(),
        "lengths"_a.none(), "reset"_a.none(), "batch_sizes"_a.none(), "threads"_a,
        "Fills d_x (directions, *x.shape), d_h_0 (directions, N, S) and d_weights, arrays as the "
        "weights are.");
  bind_modules(m);
  bind_tensor_calls(m);
  bind_xla_calls(m);
  m.def("poison_buffers", &poison_buffers, "on"_a,
        "For tests: fill scratch memory with NaN before use.");
  m.def("always_wait", &always_wait, "on"_a,
        "For tests: threads are waited for, though others have the processors.");
}
#undef PyInit__engine

namespace {

bool in_main_interpreter() {
  if (PyInterpreterState_GetID(PyInterpreterState_Get()) == 0) return true;
  PyErr_SetString(PyExc_ImportError, "elman._engine runs in the main interpreter only");
  return false;
}

int (*execute)(PyObject*);  // nanobind's

int execute_in_main_interpreter(PyObject* module) {
  return in_main_interpreter() ? execute(module) : -1;
}

}  // namespace

// From Python 3.13 on this runs in the main interpreter, whichever imports: so what it returns has
// to look as well.
extern "C" NB_EXPORT PyObject* PyInit__engine() {
  PyObject* const definition = in_main_interpreter() ? init_in_main_interpreter() : nullptr;
  if (!definition || execute) return definition;
  PyModuleDef_Slot* slot = reinterpret_cast<PyModuleDef*>(definition)->m_slots;
  while (slot->slot != Py_mod_exec) ++slot;
  execute = reinterpret_cast<decltype(execute)>(slot->value);
  slot->value = reinterpret_cast<void*>(execute_in_main_interpreter);
  return definition;
}
