#include "interpreter.h"

#include <nanobind/nanobind.h>

#include <atomic>

#include "system.h"

namespace nb = nanobind;

namespace elman {
namespace {

// The thread on which Python runs the handlers of signals.
std::atomic<unsigned long> main_thread;

}  // namespace

void find_main_thread() {
  main_thread = nb::cast<unsigned long>(
      nb::module_::import_("threading").attr("main_thread")().attr("ident"));
  after_fork([] { main_thread = PyThread_get_thread_ident(); });
}

void handle_signals() {
  if (PyThread_get_thread_ident() != main_thread) return;
  nb::gil_scoped_acquire locked;
  if (PyErr_CheckSignals() != 0) throw nb::python_error();
}

}  // namespace elman
