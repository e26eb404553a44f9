// Calls of PyTorch's modules.
#pragma once

#include <nanobind/nanobind.h>

namespace elman {

void bind_tensor_calls(nanobind::module_& m);

}  // namespace elman
