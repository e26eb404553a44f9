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
  const Panels<T>& panels() {
    std::optional<Panels<T>>& packed = std::get<std::optional<Panels<T>>>(packed_);
    std::call_once(packed_once_, [&] {
      std::vector<const void*> each;
      for (LayerWeights* w : layers_) {
        for (int d = 0; d < form_.directions; ++d) each.push_back(w->forward_panels<T>(d));
      }
      packed.emplace(std::move(each));
    });
    return *packed;
  }

  // Of x, states, the number of threads, and for layers lengths, reset and whether it is training.
  nb::object call(Arguments given, Py_ssize_t count) {
    require(count == (is_cell_ ? 3 : 6), "call takes other arguments");
    if (is_half() || (!is_cell_ && (given[3] != Py_None || given[4] != Py_None))) return nb::none();
    if (drops_out_ && given[5] != Py_False) return nb::none();
    const index threads = nb::cast<index>(nb::handle(given[2]));
    try {
      return is_float64() ? call_as<double>(given[0], given[1], threads)
                          : call_as<float>(given[0], given[1], threads);
    } catch (const std::bad_alloc&) {
      return nb::none();
    }
  }

 private:
  template <class T>
  nb::object call_as(PyObject* x_object, PyObject* states_object, index threads) {
    const View<T> x(x_object);
    const int most = is_cell_ ? 2 : 3;
    if (!x || x.axes() > most || x.axes() < most - 1) return nb::none();
    // The axes of rows and of time.
    const bool is_batched = x.axes() == most, is_swapped = batch_first_ && is_batched;
    const int row = is_batched && !is_cell_ && !batch_first_ ? 1 : 0, time = is_swapped ? 1 : 0;
    const index batch = is_batched ? x.size(row) : 1, steps = is_cell_ ? 1 : x.size(time);
    if (batch == 0 || steps == 0 || x.size(x.axes() - 1) != form_.first.D) return nb::none();

    LayersForward<T> f{};
    f.form = form_;
    f.x = {x.data(), is_cell_ ? 0 : x.stride(time), is_batched ? x.stride(row) : 0, nullptr};
    const Shape state_shapes[2] = {state_shape(is_batched, batch, form_.first.P),
                                   state_shape(is_batched, batch, form_.first.H)};
    if (!read_states(states_object, state_shapes, is_batched, f.first)) return nb::none();
    nb::object last[2], output;
    for (int s = 0; s < (has_c() ? 2 : 1); ++s) {
      last[s] = result_of<T>(state_shapes[s]);
      const index features = s == 0 ? form_.first.P : form_.first.H;
      f.last[s] = {data_of<T>(last[s]), batch * features, features};
    }
    if (is_cell_) {  // its output is its h: written twice, to the same place
      f.output = {f.last[0].data, 0, form_.first.P, nullptr};
    } else {
      const index features = form_.features();
      output = result_of<T>(is_batched ? Shape{3, {steps, batch, features}}
                                       : Shape{2, {steps, features}});
      f.output = {data_of<T>(output), batch * features, features, nullptr};
    }
    run(f, steps, batch, threads);
    const nb::object states = has_c() ? nb::make_tuple(last[0], last[1]) : last[0];
    if (is_cell_) return states;
    if (is_swapped)
      output = made(PyArray_SwapAxes(reinterpret_cast<PyArrayObject*>(output.ptr()), 0, 1));
    return nb::make_tuple(output, states);
  }

  Shape state_shape(bool is_batched, index batch, index features) const {
    Shape shape;
    if (!is_cell_) shape.sizes[shape.count++] = form_.parts();
    if (is_batched) shape.sizes[shape.count++] = batch;
    shape.sizes[shape.count++] = features;
    return shape;
  }

  // False where they are not what they should be.
  template <class T>
  bool read_states(PyObject* given, const Shape (&shapes)[2], bool is_batched,
                   States<const T> (&to)[2]) const {
    if (given == Py_None) return true;
    if (!has_c()) return read_state(given, shapes[0], is_batched, to[0]);
    if (!PyTuple_CheckExact(given) || PyTuple_Size(given) != 2) return false;
    return read_state(PyTuple_GetItem(given, 0), shapes[0], is_batched, to[0]) &&
           read_state(PyTuple_GetItem(given, 1), shapes[1], is_batched, to[1]);
  }
  template <class T>
  bool read_state(PyObject* given, const Shape& shape, bool is_batched, States<const T>& to) const {
    const View<T> view(given);
    if (!view || !view.has_shape(shape)) return false;
    const int row = is_cell_ ? 0 : 1;
    to = {view.data(), is_cell_ ? 0 : view.stride(0), is_batched ? view.stride(row) : 0};
    return true;
  }

  template <class T>
  void run(LayersForward<T>& f, index steps, index batch, index threads) {
    const Schedule schedule = Schedule::dense(steps, batch, nullptr, {});
    std::optional<nb::gil_scoped_release> unlocked;
    if (is_worth_unlocking(schedule.rows())) unlocked.emplace();
    const StandardArithmetic standard;
    f.panels = &panels<T>();
    run_layers(kernel<T>(), schedule, f, threads, handle_signals);
  }

  const std::vector<nb::object> objects_;
  const bool batch_first_, drops_out_, is_cell_;
  std::vector<LayerWeights*> layers_;
  Form form_{};
  std::once_flag packed_once_;
  std::tuple<std::optional<Panels<float>>, std::optional<Panels<double>>> packed_;
};

nb::object call_module(Module& module, Arguments given, Py_ssize_t count) {
  return module.call(given, count);
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
                   "its results, or None where the call is not for the engine alone.");
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
