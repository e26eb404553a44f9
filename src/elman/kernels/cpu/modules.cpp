// A call of one of the NumPy package's layers or cells in one call: the checks, the layers, the
// results. And streams, which run one step after another.
//
// Whatever is unusual is turned away with None before anything has been done, and takes the way of
// layers.py, which says what is wrong with it.
#include "modules.h"

#include <nanobind/stl/vector.h>

#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#define NPY_TARGET_VERSION NPY_1_22_API_VERSION
#include <numpy/arrayobject.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "arithmetic.h"
#include "builtin.h"
#include "interpreter.h"
#include "layers.h"
#include "steps.h"
#include "weights.h"

using namespace nanobind::literals;

namespace elman {
namespace {

// --- Arrays --------------------------------------------------------------------------------------

// Values of a result from which it lies in the engine's memory. For fewer NumPy is quicker.
constexpr index kLarge = index{1} << 14;

template <class T>
constexpr int kType = sizeof(T) == sizeof(double) ? NPY_DOUBLE : NPY_FLOAT;

struct Shape {
  int count = 0;
  npy_intp sizes[3] = {};
};

nb::object made(PyObject* array) {
  if (array) return nb::steal(array);
  PyErr_Clear();  // larger than any memory
  throw std::bad_alloc();
}

// The memory of `owner` as an array.
template <class T>
nb::object array_on(T* data, int axes, const npy_intp* sizes, nb::object owner) {
  nb::object array = made(PyArray_New(&PyArray_Type, axes, sizes, kType<T>, nullptr, data, 0,
                                      NPY_ARRAY_CARRAY, nullptr));
  PyArray_SetBaseObject(reinterpret_cast<PyArrayObject*>(array.ptr()), owner.release().ptr());
  return array;
}

template <class T>
nb::object array_of_engine(int axes, const npy_intp* sizes) {
  double values = 1;  // an integer may be too small for it
  for (int axis = 0; axis < axes; ++axis) values *= static_cast<double>(sizes[axis]);
  if (values > static_cast<double>(std::numeric_limits<index>::max() / 16)) throw std::bad_alloc();
  auto buffer = std::make_unique<Buffer<T>>(static_cast<index>(values));
  T* const data = buffer->get();
  return array_on(data, axes, sizes, nb::capsule(buffer.release(), [](void* p) noexcept {
                    delete static_cast<Buffer<T>*>(p);
                  }));
}

nb::object empty(const std::vector<npy_intp>& shape, bool is_float64) {
  const int axes = static_cast<int>(shape.size());
  return is_float64 ? array_of_engine<double>(axes, shape.data())
                    : array_of_engine<float>(axes, shape.data());
}

template <class T>
T* data_of(const nb::object& array) {
  return static_cast<T*>(PyArray_DATA(reinterpret_cast<PyArrayObject*>(array.ptr())));
}

// A new array for a result.
template <class T>
nb::object result_of(const Shape& shape) {
  double values = 1;
  for (int axis = 0; axis < shape.count; ++axis) values *= static_cast<double>(shape.sizes[axis]);
  if (values >= kLarge) return array_of_engine<T>(shape.count, shape.sizes);
  const nb::object array = made(PyArray_SimpleNew(shape.count, shape.sizes, kType<T>));
  poison(data_of<T>(array), static_cast<index>(values));
  return array;
}

// An array's memory, read and written where it lies.
template <class T>
class View {
 public:
  // Leaves it absent where the object is no plain array of T whose features lie side by side.
  explicit View(PyObject* object) {
    if (!PyArray_CheckExact(object)) return;
    PyArrayObject* const a = reinterpret_cast<PyArrayObject*>(object);
    const int axes = PyArray_NDIM(a);
    if (axes == 0 || PyArray_TYPE(a) != kType<T> || !PyArray_ISBEHAVED_RO(a)) return;
    if (PyArray_DIM(a, axes - 1) > 1 && PyArray_STRIDE(a, axes - 1) != sizeof(T)) return;
    if (is_mapped(PyArray_DATA(a))) array_ = a;
  }

  explicit operator bool() const { return array_ != nullptr; }
  T* data() const { return static_cast<T*>(PyArray_DATA(array_)); }
  int axes() const { return PyArray_NDIM(array_); }
  index size(int axis) const { return PyArray_DIM(array_, axis); }
  index stride(int axis) const { return PyArray_STRIDE(array_, axis) / index{sizeof(T)}; }
  bool is_writeable() const { return PyArray_ISWRITEABLE(array_); }
  bool has_shape(const Shape& shape) const {
    return axes() == shape.count &&
           std::equal(shape.sizes, shape.sizes + shape.count, PyArray_DIMS(array_));
  }

 private:
  PyArrayObject* array_ = nullptr;
};

// --- Modules -------------------------------------------------------------------------------------

// Multiplications of a call of some 10 microseconds. For less the interpreter's lock is kept: to
// have it back from another thread can take 5 milliseconds.
constexpr double kWorthUnlocking = 1 << 18;

// How the sequences of one call lie.
struct Layout {
  index steps, batch;
  bool is_batched, is_swapped;  // swapped: rows come before time
};

// What a call that was recorded keeps for the way back.
struct Tape {
  nb::object module, x;  // x is a copy, since the caller may fill it anew
  Memory kept;
  index threads;
  bool recompute;
};

// A layer or cell of the NumPy package: its weights, packed once.
class Module {
 public:
  Module(std::vector<nb::object> layers, bool batch_first, bool drops_out, bool is_cell)
      : objects_(std::move(layers)),
        batch_first_(batch_first),
        drops_out_(drops_out),
        is_cell_(is_cell) {
    for (const nb::object& layer : objects_) layers_.push_back(&nb::cast<LayerWeights&>(layer));
    require(!layers_.empty(), "there is a layer");
    const LayerWeights& first = *layers_[0];
    form_ = {first.cell(), static_cast<index>(layers_.size()), first.directions(), first.sizes()};
    for (index k = 0; k < form_.layers; ++k) {
      const LayerWeights& w = *layers_[k];
      const Sizes expected = form_.sizes(k), &s = w.sizes();
      require(w.cell() == form_.cell && w.directions() == form_.directions &&
                  w.is_float64() == is_float64() && s.D == expected.D && s.H == expected.H &&
                  s.P == expected.P,
              "each layer fits the one below");
    }
  }

  const Form& form() const { return form_; }
  bool is_half() const { return layers_[0]->is_half(); }
  bool is_float64() const { return layers_[0]->is_float64(); }
  bool has_c() const { return layers_[0]->any_kernel().has_c; }
  template <class T>
  const Kernel<T>& kernel() const {
    return layers_[0]->kernel<T>();
  }
  bool is_worth_unlocking(index rows) const {
    double work = 0;
    for (const LayerWeights* w : layers_) {
      const Sizes& s = w->sizes();
      work += 1.0 * rows * form_.directions * w->any_kernel().gates * s.H * (s.D + s.P);
    }
    return work >= kWorthUnlocking;
  }

  // Packed when first asked for.
  template <class T>
  const Panels<T>& panels(typename Panels<T>::Pass pass = Panels<T>::kForward) {
    Packed& packed = packed_[pass];
    std::optional<Panels<T>>& panels = std::get<std::optional<Panels<T>>>(packed.panels);
    std::call_once(packed.once, [&] {
      std::vector<const void*> each;
      for (LayerWeights* w : layers_) {
        for (int d = 0; d < form_.directions; ++d) {
          each.push_back(pass == Panels<T>::kForward ? w->forward_panels<T>(d)
                                                     : w->backward_panels<T>(d));
        }
      }
      panels.emplace(std::move(each));
    });
    return *panels;
  }

  // Of x, states, the number of threads, and for layers lengths, reset and whether it is training.
  nb::object call(Arguments given, Py_ssize_t count) {
    require(count == (is_cell_ ? 3 : 6), "call takes other arguments");
    return run(given, nullptr);
  }

  // The same of a layer, and whether to keep no gates: its results, and their Tape.
  nb::object record(Arguments given, Py_ssize_t count) {
    require(!is_cell_ && count == 7, "record takes other arguments");
    Tape tape{};
    tape.recompute = given[6] == Py_True;
    return run(given, &tape);
  }

  // Of the gradients of a call's results, those of x, of its states and of all weights there are.
  nb::object backward(const Tape& tape, PyObject* d_output, PyObject* d_last) {
    return is_float64() ? backward_as<double>(tape, d_output, d_last)
                        : backward_as<float>(tape, d_output, d_last);
  }

 private:
  struct Packed {
    std::once_flag once;
    std::tuple<std::optional<Panels<float>>, std::optional<Panels<double>>> panels;
  };

  nb::object run(Arguments given, Tape* tape) {
    if (is_half() || (!is_cell_ && (given[3] != Py_None || given[4] != Py_None))) return nb::none();
    if (drops_out_ && given[5] != Py_False) return nb::none();
    const index threads = nb::cast<index>(nb::handle(given[2]));
    try {
      return is_float64() ? call_as<double>(given[0], given[1], threads, tape)
                          : call_as<float>(given[0], given[1], threads, tape);
    } catch (const std::bad_alloc&) {
      return nb::none();
    }
  }

  template <class T>
  nb::object call_as(PyObject* x_object, PyObject* states_object, index threads, Tape* tape) {
    Layout layout;
    LayersForward<T> f{};
    f.form = form_;
    if (!read_x(View<T>(x_object), layout, f.x)) return nb::none();
    if (!read_states(states_object, layout, f.first)) return nb::none();
    if (states_object != Py_None && !has_all(f.first)) return nb::none();
    nb::object last[2], output;
    for (int s = 0; s < (has_c() ? 2 : 1); ++s) last[s] = new_state<T>(layout, s, f.last[s]);
    if (is_cell_) {  // its output is its h: written twice, to the same place
      f.output = {f.last[0].data, 0, form_.first.P, nullptr};
    } else {
      output = new_sequence<T>(layout, form_.features(), f.output);
    }
    const Schedule schedule = Schedule::dense(layout.steps, layout.batch, nullptr, {});
    if (tape) start<T>(*tape, x_object, schedule, threads, f);
    {
      std::optional<nb::gil_scoped_release> unlocked;
      if (is_worth_unlocking(schedule.rows())) unlocked.emplace();
      const StandardArithmetic standard;
      f.panels = &panels<T>();
      run_layers(kernel<T>(), schedule, f, threads, handle_signals);
    }
    const nb::object states = has_c() ? nb::make_tuple(last[0], last[1]) : last[0];
    if (is_cell_) return states;
    if (!tape) return nb::make_tuple(output, states);
    return nb::make_tuple(output, states, nb::cast(std::move(*tape)));
  }

  // Makes room for what backward needs.
  template <class T>
  void start(Tape& tape, PyObject* x, const Schedule& schedule, index threads,
             LayersForward<T>& f) {
    tape.module = nb::find(this);
    tape.x = made(PyArray_NewCopy(reinterpret_cast<PyArrayObject*>(x), NPY_CORDER));
    tape.threads = threads;
    f.recompute = tape.recompute;
    const index size = kept_size(kernel<T>(), schedule, form_, f.recompute);
    tape.kept = Memory(static_cast<std::size_t>(size) * sizeof(T));
    f.kept = static_cast<T*>(tape.kept.get());
    poison(f.kept, size);
  }

  template <class T>
  nb::object backward_as(const Tape& tape, PyObject* d_output, PyObject* d_last) {
    LayersBackward<T> b{};
    b.form = form_;
    b.kept = static_cast<const T*>(tape.kept.get());
    Layout layout;
    if (!read_x(View<T>(tape.x.ptr()), layout, b.x)) return nb::none();
    if (!read_states(d_last, layout, b.d_last)) return nb::none();
    if (d_output != Py_None) {
      const View<T> d(d_output);
      if (!d || !d.has_shape(sequence_shape(layout, form_.features()))) return nb::none();
      b.d_output = sequence<const T>(d, layout);
    }
    std::vector<nb::object> results = {new_sequence<T>(layout, form_.first.D, b.d_x)};
    for (int s = 0; s < (has_c() ? 2 : 1); ++s)
      results.push_back(new_state<T>(layout, s, b.d_first[s]));
    std::vector<T*> d_weights;
    for (const LayerWeights* w : layers_) {
      for (std::size_t i = 0; i < kWeights * form_.directions; ++i) {
        if (w->has(i)) results.push_back(result_of<T>(shape_of(w->array(i))));
        d_weights.push_back(w->has(i) ? data_of<T>(results.back()) : nullptr);
      }
    }
    b.d_weights = d_weights.data();
    const Schedule schedule = Schedule::dense(layout.steps, layout.batch, nullptr, {});
    {
      std::optional<nb::gil_scoped_release> unlocked;
      if (is_worth_unlocking(schedule.rows())) unlocked.emplace();
      const StandardArithmetic standard;
      b.panels = &panels<T>(Panels<T>::kBackward);
      if (tape.recompute && kernel<T>().kept > 0) b.forward_panels = &panels<T>();
      run_layers_backward(kernel<T>(), schedule, b, tape.threads, handle_signals);
    }
    return tuple_of(results);
  }

  static Shape shape_of(const In& array) {
    Shape shape;
    for (std::size_t axis = 0; axis < array.ndim(); ++axis)
      shape.sizes[shape.count++] = static_cast<npy_intp>(array.shape(axis));
    return shape;
  }

  // False where it is not what it should be, or nothing is to be done.
  template <class T>
  bool read_x(const View<T>& x, Layout& layout, Sequence<const T>& to) const {
    const int most = is_cell_ ? 2 : 3;
    if (!x || x.axes() > most || x.axes() < most - 1) return false;
    layout.is_batched = x.axes() == most;
    layout.is_swapped = batch_first_ && layout.is_batched;
    layout.batch = layout.is_batched ? x.size(row_axis(layout)) : 1;
    layout.steps = is_cell_ ? 1 : x.size(1 - row_axis(layout));
    to = sequence<const T>(x, layout);
    return layout.batch > 0 && layout.steps > 0 && x.size(x.axes() - 1) == form_.first.D;
  }

  // Of a batch; without one, time is the other axis all the same.
  int row_axis(const Layout& l) const { return is_cell_ || l.is_swapped ? 0 : 1; }

  template <class T, class A>
  Sequence<T> sequence(const View<A>& a, const Layout& l) const {
    const int row = row_axis(l);
    return {a.data(), is_cell_ ? 0 : a.stride(1 - row), l.is_batched ? a.stride(row) : 0, nullptr};
  }

  static Shape sequence_shape(const Layout& l, index features) {
    if (!l.is_batched) return {2, {l.steps, features}};
    if (l.is_swapped) return {3, {l.batch, l.steps, features}};
    return {3, {l.steps, l.batch, features}};
  }

  // A new one, which lies in memory with time first.
  template <class T>
  nb::object new_sequence(const Layout& l, index features, Sequence<T>& to) const {
    Layout time_first = l;
    time_first.is_swapped = false;
    const nb::object array = result_of<T>(sequence_shape(time_first, features));
    to = {data_of<T>(array), l.batch * features, features, nullptr};
    if (!l.is_swapped) return array;
    return made(PyArray_SwapAxes(reinterpret_cast<PyArrayObject*>(array.ptr()), 0, 1));
  }

  index state_features(int s) const { return s == 0 ? form_.first.P : form_.first.H; }

  Shape state_shape(const Layout& l, int s) const {
    Shape shape;
    if (!is_cell_) shape.sizes[shape.count++] = form_.parts();
    if (l.is_batched) shape.sizes[shape.count++] = l.batch;
    shape.sizes[shape.count++] = state_features(s);
    return shape;
  }

  template <class T>
  nb::object new_state(const Layout& l, int s, States<T>& to) const {
    const index features = state_features(s);
    const nb::object array = result_of<T>(state_shape(l, s));
    to = {data_of<T>(array), l.batch * features, features};
    return array;
  }

  template <class T>
  bool has_all(const States<const T> (&states)[2]) const {
    return states[0].data && (!has_c() || states[1].data);
  }

  // False where they are not what they should be; None is none.
  template <class T>
  bool read_states(PyObject* given, const Layout& l, States<const T> (&to)[2]) const {
    if (given == Py_None) return true;
    if (!has_c()) return read_state(given, l, 0, to[0]);
    if (!PyTuple_CheckExact(given) || PyTuple_Size(given) != 2) return false;
    return read_state(PyTuple_GetItem(given, 0), l, 0, to[0]) &&
           read_state(PyTuple_GetItem(given, 1), l, 1, to[1]);
  }
  template <class T>
  bool read_state(PyObject* given, const Layout& l, int s, States<const T>& to) const {
    if (given == Py_None) return true;
    const View<T> view(given);
    if (!view || !view.has_shape(state_shape(l, s))) return false;
    to = {view.data(), is_cell_ ? 0 : view.stride(0),
          l.is_batched ? view.stride(is_cell_ ? 0 : 1) : 0};
    return true;
  }

  const std::vector<nb::object> objects_;
  const bool batch_first_, drops_out_, is_cell_;
  std::vector<LayerWeights*> layers_;
  Form form_{};
  Packed packed_[2];  // by pass
};

nb::object call_module(Module& module, Arguments given, Py_ssize_t count) {
  return module.call(given, count);
}
nb::object record_module(Module& module, Arguments given, Py_ssize_t count) {
  return module.record(given, count);
}
nb::object run_back(Tape& tape, Arguments given, Py_ssize_t count) {
  require(count == 2, "backward takes two arguments");
  return nb::cast<Module&>(tape.module).backward(tape, given[0], given[1]);
}

// --- Streams -------------------------------------------------------------------------------------

// Whether a value of one would be where one of the other is; or may be, which is enough.
template <class T>
bool overlap(const View<T>& a, const View<T>& b) {
  const auto edges = [](const View<T>& view) {
    const index to_last_row = view.axes() == 1 ? 0 : (view.size(0) - 1) * view.stride(0);
    T* const data = view.data();
    return std::pair(data + std::min<index>(to_last_row, 0),
                     data + std::max<index>(to_last_row, 0) + view.size(view.axes() - 1));
  };
  const auto [a_begins, a_ends] = edges(a);
  const auto [b_begins, b_ends] = edges(b);
  return a_begins < b_ends && b_begins < a_ends;
}

// A layer of the NumPy package, run step by step.
class Stream {
 public:
  Stream(nb::object module, index rows, index threads)
      : object_(std::move(module)),
        module_(nb::cast<Module&>(object_)),
        is_worth_unlocking_(module_.is_worth_unlocking(rows)) {
    require(module_.form().directions == 1 && rows > 0, "a stream has rows of one direction");
    if (module_.is_float64()) {
      steps_.emplace<Steps<double>>(module_.kernel<double>(), module_.form(),
                                    module_.panels<double>(), rows, threads);
    } else {
      steps_.emplace<Steps<float>>(module_.kernel<float>(), module_.form(), module_.panels<float>(),
                                   rows, threads);
    }
  }

  // Of x, and what the output is written to, or None.
  nb::object step(Arguments given, Py_ssize_t count) {
    require(count == 2, "step takes two arguments");
    if (module_.is_half()) return nb::none();
    return module_.is_float64() ? step_as<double>(given[0], given[1])
                                : step_as<float>(given[0], given[1]);
  }

  nb::object states(nb::handle self) const {
    return module_.is_float64() ? states_as<double>(self) : states_as<float>(self);
  }

 private:
  template <class T>
  nb::object step_as(PyObject* x_object, PyObject* output_object) {
    Steps<T>& steps = std::get<Steps<T>>(steps_);
    const Sizes& sizes = module_.form().first;
    const View<T> x(x_object);
    if (!x || x.axes() > 2) return nb::none();
    const bool is_row = x.axes() == 1;
    if (x.size(is_row ? 0 : 1) != sizes.D || (is_row ? 1 : x.size(0)) != steps.rows())
      return nb::none();
    const Shape shape = is_row ? Shape{1, {sizes.P}} : Shape{2, {steps.rows(), sizes.P}};
    const bool is_given = output_object != Py_None;
    const nb::object output = is_given ? nb::borrow(output_object) : result_of<T>(shape);
    const View<T> to(output.ptr());
    if (!to || !to.has_shape(shape)) return nb::none();
    if (is_given && (!to.is_writeable() || overlap(x, to))) return nb::none();
    std::optional<nb::gil_scoped_release> unlocked;
    if (is_worth_unlocking_) unlocked.emplace();
    const StandardArithmetic standard;
    steps.step({x.data(), is_row ? 0 : x.stride(0)}, {to.data(), is_row ? 0 : to.stride(0)},
               handle_signals);
    return output;
  }

  template <class T>
  nb::object states_as(nb::handle self) const {
    const Steps<T>& steps = std::get<Steps<T>>(steps_);
    const Form& form = module_.form();
    const index S = module_.kernel<T>().state_size(form.first);
    const npy_intp sizes[] = {form.layers, steps.rows(), S};
    return array_on(steps.states(), 3, sizes, nb::borrow(self));
  }

  const nb::object object_;
  Module& module_;
  const bool is_worth_unlocking_;
  std::variant<std::monostate, Steps<float>, Steps<double>> steps_;
};

nb::object step_of_stream(Stream& stream, Arguments given, Py_ssize_t count) {
  return stream.step(given, count);
}

}  // namespace

void bind_modules(nb::module_& m) {
  if (_import_array() != 0) throw nb::python_error();
  m.attr("LARGE") = kLarge;
  m.def("empty", &empty, "shape"_a, "is_float64"_a,
        "A new array, float64 or float32, in memory that the engine keeps for the next one when it "
        "is freed: for a result of LARGE values and more.");
  nb::class_<Module>(m, "Module",
                     "A layer or cell of the NumPy package, from each layer's Weights.")
      .def(nb::init<std::vector<nb::object>, bool, bool, bool>(), "layers"_a, "batch_first"_a,
           "drops_out"_a, "is_cell"_a)
      .def_prop_ro("call", builtin<Module, call_module>,
                   nb::for_getter(nb::sig("def call(self) -> typing.Callable[..., typing.Any]")),
                   "call(x, states, threads, lengths, reset, training), of a cell the first three: "
                   "its results, or None where the call is not for the engine alone.")
      .def_prop_ro("record", builtin<Module, record_module>,
                   nb::for_getter(nb::sig("def record(self) -> typing.Callable[..., typing.Any]")),
                   "record(x, states, threads, lengths, reset, training, recompute), of a layer: "
                   "its results and their Tape, or None.");
  nb::class_<Tape>(m, "Tape", "What a Module's recorded call keeps for the way back.")
      .def_prop_ro(
          "backward", builtin<Tape, run_back>,
          nb::for_getter(nb::sig("def backward(self) -> typing.Callable[..., typing.Any]")),
          "backward(d_output, d_states): the gradients of x, of each state and of every "
          "weight, or None where these are not for the engine alone.");
  nb::class_<Stream>(m, "Stream", "A Module's steps, of layers of one direction, from zeros.")
      .def(nb::init<nb::object, index, index>(), "module"_a, "rows"_a, "threads"_a)
      .def_prop_ro(
          "step", builtin<Stream, step_of_stream>,
          nb::for_getter(nb::sig("def step(self) -> typing.Callable[..., typing.Any]")),
          "step(x, out): of x (rows, D) the output (rows, P), or of one row (D) and (P), in `out` "
          "unless that is None; or None where the step is not for the engine alone.")
      .def_prop_ro(
          "states", [](nb::handle self) { return nb::cast<Stream&>(self).states(self); },
          nb::for_getter(nb::sig("def states(self) -> typing.Any")),
          "Every layer's state (layers, rows, S): the stream's own memory, until its next step.");
}

}  // namespace elman
