// A call of one of PyTorch's modules in one call: the checks, the layers, the results, and as a
// node of autograd the way back.
//
// Whatever is unusual is turned away with None before anything has been done, and takes the way of
// layers.py, where the same is computed by PyTorch's own means. Nothing of libtorch is linked: a
// tensor is lent by DLPack's exchange functions, and all else are calls of Python objects.
#include "tensors.h"

#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "arithmetic.h"
#include "arrays.h"
#include "builtin.h"
#include "interpreter.h"
#include "layers.h"

using namespace nanobind::literals;

namespace elman {
namespace {

// --- What a call is ------------------------------------------------------------------------------

struct Tensor;

struct Shape {
  int count = 0;
  std::array<index, 3> sizes{};
};

// A call, from the module's attributes and the shape of x.
struct TensorCall {
  Form form{};
  bool is_cell = false, is_batched = true, batch_first = false, recompute = false;
  bool is_float64 = false, bias = true;
  index steps = 1, batch = 1;
  std::vector<std::size_t> places;  // of the tensors that the node has, in the order below
  // While the call is being recorded.
  const Schedule* schedule = nullptr;
  const std::vector<Tensor>* tensors = nullptr;

  const Kernel<float>& any_kernel() const { return kernels().float32[form.cell]; }
  bool has_c() const { return any_kernel().has_c; }

  // Of x, with D features, and of output.
  Shape sequence(index features) const {
    if (is_cell) return is_batched ? Shape{2, {batch, features}} : Shape{1, {features}};
    if (!is_batched) return {2, {steps, features}};
    return batch_first ? Shape{3, {batch, steps, features}} : Shape{3, {steps, batch, features}};
  }
  // Of h, with P features, and of c, with H.
  Shape state(index features) const {
    if (is_cell) return sequence(features);
    return is_batched ? Shape{3, {form.parts(), batch, features}}
                      : Shape{2, {form.parts(), features}};
  }
  index state_features(int state) const { return state == 0 ? form.first.P : form.first.H; }
  Shape lengths() const { return {is_batched ? 1 : 0, {batch}}; }
  Shape reset() const {
    Shape shape = sequence(1);
    --shape.count;
    return shape;
  }
  // No axes: there is no such weight.
  Shape weight(index part, int number) const {
    const Sizes s = form.sizes(part / form.directions);
    const index rows = any_kernel().gates * s.H;
    if (number == 0) return {2, {rows, s.D}};
    if (number == 1) return {2, {rows, s.P}};
    if (number == 4) return s.projected() ? Shape{2, {s.P, s.H}} : Shape{};
    return bias ? Shape{1, {rows}} : Shape{};
  }
};

// The tensors of a call, in this order, and then kWeights of each part.
enum { kX, kH0, kC0, kLengths, kReset, kFirstWeight };

// --- Tensors -------------------------------------------------------------------------------------

// A tensor's memory, lent for as long as nobody changes it.
struct Tensor {
  PyObject* object = nullptr;  // null: absent
  nb::object copy;             // whose memory it is where the object's does not lie as it should
  nb::dlpack::dltensor t{};

  explicit operator bool() const { return object != nullptr; }
  template <class T>
  T* data() const {
    return static_cast<T*>(t.data);
  }
  bool has_shape(const Shape& shape) const {
    return t.ndim == shape.count && std::equal(t.shape, t.shape + t.ndim, shape.sizes.begin());
  }
  bool rows_lie_together() const {
    return t.ndim == 0 || t.strides[t.ndim - 1] == 1 || t.shape[t.ndim - 1] < 2;
  }
  bool is_contiguous() const {
    index expected = 1;
    for (int axis = t.ndim; axis-- > 0; expected *= t.shape[axis]) {
      if (t.shape[axis] > 1 && t.strides[axis] != expected) return false;
    }
    return true;
  }
  bool is_aligned() const {
    const unsigned bytes = t.dtype.bits / 8;  // none, of the smallest types
    return bytes > 0 && reinterpret_cast<std::uintptr_t>(t.data) % bytes == 0;
  }
};

template <class T>
Sequence<T> sequence_of(const TensorCall& c, const Tensor& a) {
  if (!a) return {};
  T* const data = a.data<T>();
  const std::int64_t* const strides = a.t.strides;
  if (c.is_cell) return {data, 0, c.is_batched ? strides[0] : 0, nullptr};
  if (!c.is_batched) return {data, strides[0], 0, nullptr};
  return {data, strides[c.batch_first ? 1 : 0], strides[c.batch_first ? 0 : 1], nullptr};
}

template <class T>
States<T> states_of(const TensorCall& c, const Tensor& a) {
  if (!a) return {};
  if (c.is_cell) return {a.data<T>(), 0, c.is_batched ? a.t.strides[0] : 0};
  return {a.data<T>(), a.t.strides[0], c.is_batched ? a.t.strides[1] : 0};
}

PyObject* name_of(const char* name) { return PyUnicode_InternFromString(name); }

struct Names {
  PyObject *input_size = name_of("input_size"), *hidden_size = name_of("hidden_size"),
           *proj_size = name_of("proj_size"), *num_layers = name_of("num_layers"),
           *bidirectional = name_of("bidirectional"), *batch_first = name_of("batch_first"),
           *bias = name_of("bias"), *dropout = name_of("dropout"), *training = name_of("training"),
           *recompute = name_of("recompute"), *all_weights = name_of("_all_weights"),
           *parameters = name_of("_parameters");
  // Those of a node's context.
  PyObject *call = name_of("call"), *save_for_backward = name_of("save_for_backward"),
           *set_materialize_grads = name_of("set_materialize_grads"),
           *saved_tensors = name_of("saved_tensors"),
           *needs_input_grad = name_of("needs_input_grad");
  // A cell's.
  PyObject* weights[kWeights - 1] = {name_of("weight_ih"), name_of("weight_hh"), name_of("bias_ih"),
                                     name_of("bias_hh")};
  PyObject *dtype = PyTuple_Pack(1, name_of("dtype")), *level = name_of("_current_level");
};
const Names& names() {
  static const Names& names = *new Names;
  return names;
}

nb::object call(PyObject* f, std::initializer_list<PyObject*> arguments) {
  PyObject* const result = PyObject_Vectorcall(f, arguments.begin(), arguments.size(), nullptr);
  if (!result) throw nb::python_error();
  return nb::steal(result);
}

void call_method(PyObject* name, const std::vector<PyObject*>& self_and_arguments) {
  PyObject* const result = PyObject_VectorcallMethod(name, self_and_arguments.data(),
                                                     self_and_arguments.size(), nullptr);
  if (!result) throw nb::python_error();
  Py_DECREF(result);
}

nb::object attribute(PyObject* object, PyObject* name) {
  PyObject* const value = PyObject_GetAttr(object, name);
  if (!value) throw nb::python_error();
  return nb::steal(value);
}

// What is used of PyTorch.
class Torch {
 public:
  explicit Torch(const nb::dict& given)
      : tensor_(given["Tensor"]),
        parameter_(given["Parameter"]),
        exchange_(exchange_of(tensor_)),
        watchers_(nb::cast<std::vector<nb::object>>(given["watchers"])),
        forward_ad_(given["forward_ad"]),
        is_negated_(given["is_neg"]),
        requires_grad_(given["requires_grad"]),
        is_grad_enabled_(given["is_grad_enabled"]),
        threads_(given["get_num_threads"]),
        empty_(given["empty"]),
        empty_like_(given["empty_like"]),
        empty_strided_(given["empty_strided"]),
        view_as_(given["view_as"]),
        contiguous_(given["contiguous"]),
        dtypes_{given["float32"], given["float64"]},
        get_requires_grad_(reinterpret_cast<descrgetfunc>(
            PyType_GetSlot(Py_TYPE(requires_grad_.ptr()), Py_tp_descr_get))) {}

  // Whether nothing would see, or change, what operators do.
  bool is_quiet() const {
    for (const nb::object& watcher : watchers_) {
      if (nb::bool_(call(watcher.ptr(), {}))) return false;
    }
    return PyLong_AsLong(attribute(forward_ad_.ptr(), names().level).ptr()) < 0;
  }
  bool is_grad_enabled() const { return call(is_grad_enabled_.ptr(), {}).ptr() == Py_True; }
  bool requires_grad(PyObject* tensor) const {
    PyObject* const found = get_requires_grad_(requires_grad_.ptr(), tensor, tensor_.ptr());
    if (!found) throw nb::python_error();
    return nb::steal(found).ptr() == Py_True;
  }
  index threads() const { return nb::cast<index>(call(threads_.ptr(), {})); }
  nb::object view(const nb::object& tensor) const {
    return call(view_as_.ptr(), {tensor.ptr(), tensor.ptr()});
  }

  // False where it is no plain tensor in the CPU's memory.
  bool lend(PyObject* object, Tensor& to) const {
    if (Py_TYPE(object) != type(tensor_) && Py_TYPE(object) != type(parameter_)) return false;
    if (call(is_negated_.ptr(), {object}).ptr() == Py_True) return false;
    if (exchange_->lend(object, &to.t) != 0) {
      PyErr_Clear();
      return false;
    }
    to.object = object;
    to.t.data = static_cast<char*>(to.t.data) + to.t.byte_offset;
    return to.t.device.device_type == nb::device::cpu::value && is_mapped(to.t.data) &&
           to.is_aligned();
  }
  bool make_contiguous(Tensor& a) const {
    a.copy = call(contiguous_.ptr(), {a.object});
    PyObject* const object = a.object;
    const bool is_lent = lend(a.copy.ptr(), a);
    a.object = object;
    return is_lent;
  }

  // A new one, as `like` if there is one of that shape.
  nb::object empty(const Shape& shape, bool is_float64, const Tensor* like, Tensor& to) const {
    if (like && *like && !like->copy && like->has_shape(shape) && like->is_contiguous())
      return lent(call(empty_like_.ptr(), {like->object}), to);
    std::array<PyObject*, 4> arguments{};
    for (int i = 0; i < shape.count; ++i) arguments[i] = PyLong_FromLongLong(shape.sizes[i]);
    arguments[shape.count] = dtypes_[is_float64].ptr();
    PyObject* const result =
        PyObject_Vectorcall(empty_.ptr(), arguments.data(), shape.count, names().dtype);
    for (int i = 0; i < shape.count; ++i) Py_DECREF(arguments[i]);
    return lent(nb::steal(result), to);
  }
  // A sequence (N, L, features) whose times lie one behind the other all the same.
  nb::object empty_time_first(const Shape& shape, bool is_float64, Tensor& to) const {
    const auto [N, L, features] = shape.sizes;
    const nb::tuple sizes = nb::make_tuple(N, L, features);
    const nb::tuple strides = nb::make_tuple(features, N * features, 1);
    PyObject* const arguments[] = {sizes.ptr(), strides.ptr(), dtypes_[is_float64].ptr()};
    return lent(nb::steal(PyObject_Vectorcall(empty_strided_.ptr(), arguments, 2, names().dtype)),
                to);
  }

  // Memory of the engine's as a tensor.
  nb::object give(Memory memory, index values, bool is_float64) const {
    struct Owned {
      ManagedTensor managed;
      Memory memory;
      std::int64_t shape, stride;
    };
    auto owned = std::make_unique<Owned>();
    owned->memory = std::move(memory);
    owned->shape = values;
    owned->stride = 1;
    owned->managed.major = 1;
    owned->managed.context = owned.get();
    owned->managed.deleter = [](ManagedTensor* t) { delete static_cast<Owned*>(t->context); };
    owned->managed.tensor = {owned->memory.get(),
                             {nb::device::cpu::value, 0},
                             1,
                             is_float64 ? nb::dtype<double>() : nb::dtype<float>(),
                             &owned->shape,
                             &owned->stride,
                             0};
    void* given = nullptr;
    if (exchange_->give(&owned->managed, &given) != 0) throw nb::python_error();
    owned.release();
    return nb::steal(static_cast<PyObject*>(given));
  }

 private:
  static const ExchangeApi* exchange_of(const nb::object& type) {
    const ExchangeApi* const api = exchange_api(type.ptr());
    if (!api) throw std::runtime_error("this PyTorch has no DLPack exchange functions");
    return api;
  }
  static PyTypeObject* type(const nb::object& o) {
    return reinterpret_cast<PyTypeObject*>(o.ptr());
  }
  nb::object lent(nb::object owner, Tensor& to) const {
    if (!owner) throw nb::python_error();
    if (!lend(owner.ptr(), to)) throw std::bad_alloc();
    return owner;
  }

  nb::object tensor_, parameter_;
  const ExchangeApi* exchange_;
  std::vector<nb::object> watchers_;
  nb::object forward_ad_, is_negated_, requires_grad_, is_grad_enabled_, threads_;
  nb::object empty_, empty_like_, empty_strided_, view_as_, contiguous_, dtypes_[2];
  const descrgetfunc get_requires_grad_;
};

// --- Attributes of a module ----------------------------------------------------------------------

// All of them as they are in its dictionary; what is not there, or no plain value, turns the call
// away.
class Attributes {
 public:
  explicit Attributes(PyObject* dictionary) : dictionary_(dictionary) {}

  PyObject* get(PyObject* name) const { return PyDict_GetItemWithError(dictionary_, name); }
  bool read(PyObject* name, index& to) const {
    PyObject* const value = get(name);
    if (!value || !PyLong_CheckExact(value)) return false;
    to = PyLong_AsLongLong(value);
    if (to >= 0 && to <= INT32_MAX) return true;
    PyErr_Clear();
    return false;
  }
  bool read(PyObject* name, bool& to) const {
    PyObject* const value = get(name);
    to = value == Py_True;
    return value == Py_True || value == Py_False;
  }

 private:
  PyObject* dictionary_;
};

bool is_same_but_for_case(std::string_view a, std::string_view b) {
  return std::ranges::equal(
      a, b, {}, [](unsigned char c) { return std::tolower(c); },
      [](unsigned char c) { return std::tolower(c); });
}

bool find_cell(PyObject* mode, int& cell) {
  const char* const name = PyUnicode_Check(mode) ? PyUnicode_AsUTF8AndSize(mode, nullptr) : nullptr;
  if (!name) return PyErr_Clear(), false;
  for (cell = 0; cell < kernels().cells; ++cell) {
    if (is_same_but_for_case(name, kernels().float32[cell].name)) return true;
  }
  return false;
}

// --- The call ------------------------------------------------------------------------------------

using Tensors = std::vector<Tensor>;
using Objects = std::vector<PyObject*>;  // borrowed; None for what is absent

class TensorCalls {
 public:
  explicit TensorCalls(const nb::dict& torch)
      : torch_(torch), counts_(torch["counts"]), required_(torch["required"]) {}

  nb::object apply;  // of the node whose forward and backward these are

  // The module's results, or None: of its mode and its dictionary, x, hx, lengths and reset.
  nb::object run(PyObject* const* arguments, Py_ssize_t count) const {
    const auto given = [&](int i) { return i < count ? arguments[i] : Py_None; };
    try {
      if (!allows_kernel() || !torch_.is_quiet()) return nb::none();
      TensorCall c;
      Objects objects = {given(2), Py_None, Py_None, given(4), given(5)};
      if (!describe(given(0), Attributes(given(1)), c, objects)) return nb::none();
      if (!find_states(c, given(3), objects)) return nb::none();
      Tensors tensors;
      if (!read(c, objects, tensors)) return nb::none();
      const Schedule schedule = schedule_of(c, tensors);
      if (torch_.is_grad_enabled() && any_requires_grad(tensors)) {
        c.schedule = &schedule;
        c.tensors = &tensors;
        for (std::size_t i = 0; i < objects.size(); ++i) {
          if (objects[i] != Py_None) c.places.push_back(i);
        }
        nb::object results = record(c, objects);
        count_layers(c);
        return results;
      }
      const std::vector<nb::object> results = compute(c, schedule, tensors, nullptr);
      count_layers(c);
      return arranged(c, results);
    } catch (const std::bad_alloc&) {
      return nb::none();
    } catch (const std::invalid_argument&) {  // lengths out of range
      return nb::none();
    }
  }

  // As of a torch.autograd.Function, called by record(): of the context and the call, behind which
  // come its tensors.
  nb::object forward(PyObject* const* arguments, Py_ssize_t count) const {
    PyObject* const ctx = arguments[0];
    const TensorCall& c = nb::cast<const TensorCall&>(nb::handle(arguments[1]));
    nb::object kept;
    const std::vector<nb::object> results = compute(c, *c.schedule, *c.tensors, &kept);
    const Names& n = names();
    if (PyObject_SetAttr(ctx, n.call, arguments[1]) != 0) throw nb::python_error();
    call_method(n.set_materialize_grads, {ctx, Py_False});
    Objects saved(arguments + 1, arguments + count);
    saved[0] = ctx;
    saved.push_back(kept.ptr());
    call_method(n.save_for_backward, saved);
    return results.size() == 1 ? results[0] : tuple_of(results);
  }

  // The gradients of forward's arguments, or None.
  nb::object backward(PyObject* ctx, PyObject* gradients) const {
    if (torch_.is_grad_enabled() || !torch_.is_quiet()) return nb::none();
    const nb::object described = attribute(ctx, names().call);
    const TensorCall& c = nb::cast<const TensorCall&>(described);
    const nb::object saved = attribute(ctx, names().saved_tensors);
    const nb::object needs = attribute(ctx, names().needs_input_grad);
    const std::size_t count = c.places.size();
    Objects objects(kFirstWeight + kWeights * c.form.parts(), Py_None);
    for (std::size_t i = 0; i < count; ++i) objects[c.places[i]] = PyTuple_GetItem(saved.ptr(), i);
    Tensors tensors;
    Tensor kept, d_output, d_last[2];
    if (!read(c, objects, tensors)) return nb::none();
    const Schedule schedule = schedule_of(c, tensors);
    const index size = c.is_float64 ? kept_size(kernel<double>(c), schedule, c.form, c.recompute)
                                    : kept_size(kernel<float>(c), schedule, c.form, c.recompute);
    if (!read_one(c, PyTuple_GetItem(saved.ptr(), count), {1, {size}}, kept)) return nb::none();
    if (!read_gradients(c, gradients, d_output, d_last)) return nb::none();
    Tensors d(objects.size());
    std::vector<nb::object> owners(count + 1, nb::none());
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t place = c.places[i];
      if (PyTuple_GetItem(needs.ptr(), i + 1) != Py_True) continue;
      owners[i + 1] = torch_.empty(shape_of(c, place), c.is_float64, &tensors[place], d[place]);
    }
    std::vector<nb::object> scratch;
    find_scratch(c, tensors, d, scratch);
    if (c.is_float64) {
      run_backward_as<double>(c, schedule, tensors, kept, d_output, d_last, d);
    } else {
      run_backward_as<float>(c, schedule, tensors, kept, d_output, d_last, d);
    }
    return tuple_of(owners);
  }

 private:
  template <class T>
  static const Kernel<T>& kernel(const TensorCall& c) {
    if constexpr (sizeof(T) == sizeof(double)) {
      return kernels().float64[c.form.cell];
    } else {
      return kernels().float32[c.form.cell];
    }
  }

  void count_layers(const TensorCall& c) const {
    static PyObject* const kernel = name_of("kernel");
    const nb::object before = nb::borrow(PyDict_GetItemWithError(counts_.ptr(), kernel));
    const index so_far = before ? PyLong_AsLongLong(before.ptr()) : 0;
    const nb::object after = nb::steal(PyLong_FromLongLong(so_far + c.form.layers));
    if (PyDict_SetItem(counts_.ptr(), kernel, after.ptr()) != 0) throw nb::python_error();
  }

  // Fills in the call, and the weights among the objects.
  bool describe(PyObject* mode, const Attributes& a, TensorCall& c, Objects& objects) const {
    const Names& n = names();
    index proj_size = 0;
    bool bidirectional = false;
    c.is_cell = a.get(n.num_layers) == nullptr;
    c.form.layers = 1;
    Sizes& sizes = c.form.first;
    if (!find_cell(mode, c.form.cell)) return false;
    if (!a.read(n.input_size, sizes.D) || !a.read(n.hidden_size, sizes.H)) return false;
    if (!c.is_cell) {
      if (!a.read(n.num_layers, c.form.layers) || !a.read(n.proj_size, proj_size) ||
          !a.read(n.bidirectional, bidirectional) || !a.read(n.batch_first, c.batch_first) ||
          !a.read(n.bias, c.bias)) {
        return false;
      }
      c.recompute = a.get(n.recompute) == Py_True;
      if (c.form.layers > 1 && a.get(n.training) != Py_False && drops_out(a)) return false;
    }
    sizes.P = proj_size > 0 ? proj_size : sizes.H;
    c.form.directions = bidirectional ? 2 : 1;
    if (sizes.D == 0 || sizes.H == 0 || c.form.layers == 0) return false;
    if (sizes.P != sizes.H && (!c.has_c() || sizes.P > sizes.H)) return false;
    return find_weights(a, c, objects) && find_rows(objects[kX], c);
  }

  static bool drops_out(const Attributes& a) {
    PyObject* const dropout = a.get(names().dropout);
    return !dropout || PyObject_IsTrue(dropout) != 0;
  }

  bool find_weights(const Attributes& a, TensorCall& c, Objects& objects) const {
    const Names& n = names();
    PyObject* const parameters = a.get(n.parameters);
    if (!parameters || !PyDict_Check(parameters)) return false;
    if (c.is_cell) {
      for (PyObject* name : n.weights) objects.push_back(PyDict_GetItemWithError(parameters, name));
      objects.push_back(Py_None);
      c.bias = objects[kFirstWeight + 2] != Py_None;
      return !is_one_missing(objects);
    }
    PyObject* const all = a.get(n.all_weights);
    if (!all || !PyList_Check(all) || PyList_Size(all) != c.form.parts()) return false;
    const bool there[kWeights] = {true, true, c.bias, c.bias, c.form.first.projected()};
    for (index p = 0; p < c.form.parts(); ++p) {
      PyObject* const part = PyList_GetItem(all, p);
      if (!PyList_Check(part)) return false;
      Py_ssize_t next = 0;
      for (const bool is_there : there) {
        if (is_there && next == PyList_Size(part)) return false;
        objects.push_back(
            is_there ? PyDict_GetItemWithError(parameters, PyList_GetItem(part, next++)) : Py_None);
      }
      if (next != PyList_Size(part)) return false;
    }
    return !is_one_missing(objects);
  }

  static bool is_one_missing(const Objects& objects) {
    for (PyObject* o : objects) {
      if (!o) return PyErr_Clear(), true;
    }
    return false;
  }

  // Steps and rows of the batch, from x's shape, which read() looks at once more.
  bool find_rows(PyObject* object, TensorCall& c) const {
    Tensor x;
    if (!torch_.lend(object, x)) return false;
    c.is_float64 = x.t.dtype == nb::dtype<double>();
    const int most = c.is_cell ? 2 : 3;
    c.is_batched = x.t.ndim == most;
    if (!c.is_batched && x.t.ndim != most - 1) return false;
    if (c.is_cell) {
      c.batch = c.is_batched ? x.t.shape[0] : 1;
    } else if (c.is_batched) {
      c.batch = x.t.shape[c.batch_first ? 0 : 1];
    }
    if (!c.is_cell) c.steps = x.t.shape[c.is_batched && c.batch_first ? 1 : 0];
    return c.steps > 0 && c.batch > 0;
  }

  // Whether no other path than the engine's is insisted on.
  bool allows_kernel() const {
    const Py_ssize_t count = PyList_Size(required_.ptr());
    if (count == 0) return true;
    PyObject* const last = PyList_GetItem(required_.ptr(), count - 1);
    if (last) return PyUnicode_CompareWithASCIIString(last, "kernel") == 0;
    PyErr_Clear();  // another thread has taken it away
    return true;
  }

  bool find_states(const TensorCall& c, PyObject* hx, Objects& objects) const {
    if (hx == Py_None) return true;
    if (!c.has_c()) {
      objects[kH0] = hx;
      return true;
    }
    const bool is_list = PyList_CheckExact(hx);
    if ((!is_list && !PyTuple_CheckExact(hx)) || PySequence_Size(hx) != 2) return false;
    const auto item = is_list ? PyList_GetItem : PyTuple_GetItem;
    objects[kH0] = item(hx, 0);
    objects[kC0] = item(hx, 1);
    return objects[kH0] != Py_None && objects[kC0] != Py_None;
  }

  static Shape shape_of(const TensorCall& c, std::size_t i) {
    switch (i) {
      case kX:
        return c.sequence(c.form.first.D);
      case kH0:
      case kC0:
        return c.state(c.state_features(static_cast<int>(i) - kH0));
      case kLengths:
        return c.lengths();
      case kReset:
        return c.reset();
      default:
        i -= kFirstWeight;
        return c.weight(static_cast<index>(i / kWeights), static_cast<int>(i % kWeights));
    }
  }

  // Of the call's type of numbers.
  bool fits(const TensorCall& c, PyObject* object, const Shape& shape, Tensor& to) const {
    return torch_.lend(object, to) && to.has_shape(shape) &&
           to.t.dtype == (c.is_float64 ? nb::dtype<double>() : nb::dtype<float>());
  }

  bool read_one(const TensorCall& c, PyObject* object, const Shape& shape, Tensor& to) const {
    return fits(c, object, shape, to) && (to.rows_lie_together() || torch_.make_contiguous(to));
  }

  // All of a call, each as its shape and type have to be. Nothing is copied before all are.
  bool read(const TensorCall& c, const Objects& objects, Tensors& to) const {
    to.resize(objects.size());
    for (std::size_t i = 0; i < objects.size(); ++i) {
      if (objects[i] == Py_None) continue;
      const Shape shape = shape_of(c, i);
      if (i == kLengths || i == kReset) {
        if (!torch_.lend(objects[i], to[i]) || !to[i].has_shape(shape)) return false;
        if (to[i].t.dtype != (i == kReset ? nb::dtype<bool>() : nb::dtype<index>())) return false;
        if (i == kLengths && !to[i].is_contiguous()) return false;
      } else if (!fits(c, objects[i], shape, to[i])) {
        return false;
      }
    }
    return are_weights_there(c, to) && lay_out(to);
  }

  bool lay_out(Tensors& tensors) const {
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      Tensor& a = tensors[i];
      if (!a || i == kLengths || i == kReset) continue;
      const bool lies = i < kFirstWeight ? a.rows_lie_together() : a.is_contiguous();
      if (!lies && !torch_.make_contiguous(a)) return false;
    }
    return true;
  }

  static bool are_weights_there(const TensorCall& c, const Tensors& tensors) {
    for (index i = kFirstWeight; i < static_cast<index>(tensors.size()); ++i) {
      if (bool(tensors[i]) != (shape_of(c, i).count > 0)) return false;
    }
    return static_cast<index>(tensors.size()) == kFirstWeight + kWeights * c.form.parts();
  }

  bool read_gradients(const TensorCall& c, PyObject* given, Tensor& d_output,
                      Tensor (&d_last)[2]) const {
    const int outputs = c.is_cell ? 0 : 1;
    for (int i = 0; i < static_cast<int>(PyTuple_Size(given)); ++i) {
      PyObject* const d = PyTuple_GetItem(given, i);
      if (d == Py_None) continue;
      const Shape shape =
          i < outputs ? c.sequence(c.form.features()) : c.state(c.state_features(i - outputs));
      if (!read_one(c, d, shape, i < outputs ? d_output : d_last[i - outputs])) return false;
    }
    return true;
  }

  bool any_requires_grad(const Tensors& tensors) const {
    for (const Tensor& a : tensors) {
      if (a && torch_.requires_grad(a.object)) return true;
    }
    return false;
  }

  static Schedule schedule_of(const TensorCall& c, const Tensors& tensors) {
    const Tensor &lengths = tensors[kLengths], &reset = tensors[kReset];
    Schedule::Reset where;
    if (reset) {
      const std::int64_t* const strides = reset.t.strides;
      where.data = reset.data<const bool>();
      if (c.is_batched) {
        where.step = strides[c.batch_first ? 1 : 0];
        where.row = strides[c.batch_first ? 0 : 1];
      } else {
        where.step = strides[0];
      }
    }
    return Schedule::dense(c.steps, c.batch, lengths ? lengths.data<const index>() : nullptr,
                           where);
  }

  // By way of autograd.
  nb::object record(const TensorCall& c, const Objects& objects) const {
    const nb::object described = nb::cast(c);
    Objects arguments = {described.ptr()};
    for (const std::size_t place : c.places) arguments.push_back(objects[place]);
    const nb::object results =
        nb::steal(PyObject_Vectorcall(apply.ptr(), arguments.data(), arguments.size(), nullptr));
    if (!results) throw nb::python_error();
    TensorCall& done = nb::cast<TensorCall&>(described);
    done.schedule = nullptr;
    done.tensors = nullptr;
    if (!PyTuple_Check(results.ptr())) return results;
    // Each a node of its own, so that a hook on one is not called for want of its gradient.
    std::vector<nb::object> views;
    for (Py_ssize_t i = 0; i < PyTuple_Size(results.ptr()); ++i)
      views.push_back(torch_.view(nb::borrow(PyTuple_GetItem(results.ptr(), i))));
    return arranged(c, views);
  }

  // As the module gives them: output, h, c, of a cell without the output, h and c as a pair.
  static nb::object arranged(const TensorCall& c, std::vector<nb::object> results) {
    if (c.is_cell) return results.size() == 1 ? results[0] : tuple_of(results);
    if (!c.has_c()) return tuple_of(results);
    return nb::make_tuple(results[0], nb::make_tuple(results[1], results[2]));
  }

  std::vector<nb::object> compute(const TensorCall& c, const Schedule& schedule,
                                  const Tensors& tensors, nb::object* kept) const {
    return c.is_float64 ? compute_as<double>(c, schedule, tensors, kept)
                        : compute_as<float>(c, schedule, tensors, kept);
  }

  // Output, unless it is a cell, and the last states; and what backward needs.
  template <class T>
  std::vector<nb::object> compute_as(const TensorCall& c, const Schedule& schedule,
                                     const Tensors& tensors, nb::object* kept) const {
    const Kernel<T>& k = kernel<T>(c);
    LayersForward<T> f{};
    f.form = c.form;
    f.x = sequence_of<const T>(c, tensors[kX]);
    f.recompute = c.recompute;
    std::vector<nb::object> results;
    Tensor output, last[2];
    const bool batch_first = c.batch_first && c.is_batched;
    if (!c.is_cell) {
      const Shape shape = c.sequence(c.form.features());
      results.push_back(batch_first ? torch_.empty_time_first(shape, c.is_float64, output)
                                    : torch_.empty(shape, c.is_float64, nullptr, output));
      f.output = sequence_of<T>(c, output);
    }
    for (int s = 0; s < (c.has_c() ? 2 : 1); ++s) {
      const Tensor& first = tensors[kH0 + s];
      results.push_back(torch_.empty(c.state(c.state_features(s)), c.is_float64, &first, last[s]));
      f.first[s] = states_of<const T>(c, first);
      f.last[s] = states_of<T>(c, last[s]);
    }
    // A cell's output is its h: written twice, to the same place.
    if (c.is_cell) f.output = {f.last[0].data, 0, f.last[0].row, nullptr};
    if (kept) {
      const index size = kept_size(k, schedule, c.form, c.recompute);
      Memory memory(static_cast<std::size_t>(size) * sizeof(T));
      f.kept = static_cast<T*>(memory.get());
      poison(f.kept, size);
      *kept = torch_.give(std::move(memory), size, c.is_float64);
    }
    const index threads = torch_.threads();
    const std::vector<Weights> weights = weights_of(c, tensors);
    nb::gil_scoped_release unlocked;
    const StandardArithmetic standard;
    std::optional<Panels<T>> panels;
    if (!reads_weights_as_they_lie(schedule, c.form))
      f.panels = &panels.emplace(k, c.form, weights.data(), Panels<T>::kForward);
    f.weights = weights.data();
    run_layers(k, schedule, f, threads, handle_signals);
    return results;
  }

  static std::vector<Weights> weights_of(const TensorCall& c, const Tensors& tensors) {
    std::vector<Weights> weights;
    const auto data = [&](std::size_t i) -> const void* {
      return tensors[i] ? tensors[i].t.data : nullptr;
    };
    for (index p = 0; p < c.form.parts(); ++p) {
      const std::size_t i = kFirstWeight + p * kWeights;
      weights.push_back({data(i), data(i + 1), data(i + 2), data(i + 3), data(i + 4)});
    }
    return weights;
  }

  // Where the kernel computes gradients that nobody needs: all of a part's weights if any of it is
  // needed.
  void find_scratch(const TensorCall& c, const Tensors& tensors, Tensors& d,
                    std::vector<nb::object>& owners) const {
    for (std::size_t first = kFirstWeight; first < d.size(); first += kWeights) {
      const auto end = d.begin() + first + kWeights;
      if (std::none_of(d.begin() + first, end, [](const Tensor& a) { return bool(a); })) continue;
      for (std::size_t i = first; i < first + kWeights; ++i) {
        if (d[i] || !tensors[i]) continue;
        owners.push_back(torch_.empty(shape_of(c, i), c.is_float64, &tensors[i], d[i]));
      }
    }
  }

  template <class T>
  void run_backward_as(const TensorCall& c, const Schedule& schedule, const Tensors& tensors,
                       const Tensor& kept, const Tensor& d_output, const Tensor (&d_last)[2],
                       const Tensors& d) const {
    const Kernel<T>& k = kernel<T>(c);
    LayersBackward<T> b{};
    b.form = c.form;
    b.x = sequence_of<const T>(c, tensors[kX]);
    b.kept = kept.data<const T>();
    b.d_output = sequence_of<const T>(c, d_output);
    b.d_x = sequence_of<T>(c, d[kX]);
    for (int s = 0; s < 2; ++s) {
      b.d_last[s] = states_of<const T>(c, d_last[s]);
      b.d_first[s] = states_of<T>(c, d[kH0 + s]);
    }
    std::vector<T*> d_weights;
    for (std::size_t i = kFirstWeight; i < d.size(); ++i)
      d_weights.push_back(d[i] ? d[i].data<T>() : nullptr);
    b.d_weights = d_weights.data();
    const index threads = torch_.threads();
    const std::vector<Weights> weights = weights_of(c, tensors);
    nb::gil_scoped_release unlocked;
    const StandardArithmetic standard;
    std::optional<Panels<T>> panels, forward_panels;
    if (!reads_weights_as_they_lie(schedule, c.form))
      b.panels = &panels.emplace(k, c.form, weights.data(), Panels<T>::kBackward);
    b.weights = weights.data();
    if (c.recompute && k.kept > 0)
      b.forward_panels = &forward_panels.emplace(k, c.form, weights.data(), Panels<T>::kForward);
    run_layers_backward(k, schedule, b, threads, handle_signals);
  }

  Torch torch_;
  nb::object counts_;    // of layers, by path
  nb::object required_;  // a list, whose last path is insisted on
};

// --- Python's side -------------------------------------------------------------------------------

nb::object run(TensorCalls& calls, Arguments given, Py_ssize_t count) {
  return calls.run(given, count);
}
nb::object forward(TensorCalls& calls, Arguments given, Py_ssize_t count) {
  return calls.forward(given, count);
}
nb::object backward(TensorCalls& calls, Arguments given, Py_ssize_t) {
  return calls.backward(given[0], given[1]);
}

nb::list spread(const TensorCall& c, const nb::list& tensors) {
  nb::list all;
  for (index i = 0; i < kFirstWeight + kWeights * c.form.parts(); ++i) all.append(nb::none());
  for (std::size_t i = 0; i < c.places.size(); ++i) all[c.places[i]] = tensors[i];
  return all;
}

}  // namespace

void bind_tensor_calls(nb::module_& m) {
  nb::class_<TensorCall>(m, "TensorCall", "A call of one of PyTorch's modules, as its node has it.")
      .def_prop_ro("cell", [](const TensorCall& c) { return c.any_kernel().name; })
      .def_prop_ro("num_layers", [](const TensorCall& c) { return c.form.layers; })
      .def_prop_ro("directions", [](const TensorCall& c) { return c.form.directions; })
      .def(
          "spread", &spread, "tensors"_a,
          "x, h_0, c_0, lengths, reset and five weights a part, None where absent, from the node's "
          "tensors.")
      .def_ro("is_cell", &TensorCall::is_cell)
      .def_ro("is_batched", &TensorCall::is_batched)
      .def_ro("batch_first", &TensorCall::batch_first)
      .def_ro("recompute", &TensorCall::recompute);
  nb::class_<TensorCalls>(m, "TensorCalls",
                          "Calls of PyTorch's modules, from what is used of PyTorch, by name.")
      .def(nb::init<nb::dict>(), "torch"_a)
      .def_rw("apply", &TensorCalls::apply, "Of the node whose forward and backward these are.",
              nb::arg().none())
      .def_prop_ro("run", builtin<TensorCalls, run>,
                   "run(mode, attributes, x, hx, lengths=None, reset=None): the module's results, "
                   "or None where the call is not for the engine alone.")
      .def_prop_ro("forward", builtin<TensorCalls, forward>,
                   "forward(ctx, call, *tensors): the node's.")
      .def_prop_ro("backward", builtin<TensorCalls, backward>,
                   "backward(ctx, gradients): those of forward's arguments, or None.");
}

}  // namespace elman
