// Calls and streams of the NumPy package's layers and cells.
#pragma once

#include <nanobind/nanobind.h>

namespace elman {

void bind_modules(nanobind::module_& m);

}  // namespace elman
