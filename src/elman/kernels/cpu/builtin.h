// Methods that cost little to call, and tuples.
#pragma once

#include <nanobind/nanobind.h>

#include <exception>
#include <new>
#include <vector>

namespace elman {

namespace nb = nanobind;

using Arguments = PyObject* const*;

inline nb::object tuple_of(const std::vector<nb::object>& objects) {
  nb::object tuple = nb::steal(PyTuple_New(static_cast<Py_ssize_t>(objects.size())));
  for (std::size_t i = 0; i < objects.size(); ++i)
    PyTuple_SetItem(tuple.ptr(), static_cast<Py_ssize_t>(i), objects[i].inc_ref().ptr());
  return tuple;
}

// A method as a function of the interpreter's own kind, which costs less to call than nanobind's.
template <class Self, nb::object (*method)(Self&, Arguments, Py_ssize_t)>
nb::object builtin(nb::handle self) {
  static PyMethodDef definition = {
      "call",
      reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(
          +[](PyObject* self, Arguments given, Py_ssize_t count) -> PyObject* {
            try {
              return method(*nb::inst_ptr<Self>(self), given, count).release().ptr();
            } catch (nb::python_error& e) {
              e.restore();
            } catch (const std::bad_alloc&) {
              PyErr_NoMemory();
            } catch (const std::exception& e) {
              PyErr_SetString(PyExc_RuntimeError, e.what());
            }
            return nullptr;
          })),
      METH_FASTCALL, nullptr};
  return nb::steal(PyCFunction_New(&definition, self.ptr()));
}

}  // namespace elman
