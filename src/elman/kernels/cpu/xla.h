// Calls that XLA makes, for JAX.
#pragma once

#include <nanobind/nanobind.h>

namespace elman {

void bind_xla_calls(nanobind::module_& m);

}  // namespace elman
