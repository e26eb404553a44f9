// The Python interpreter around a call.
#pragma once

namespace elman {

// To be called when the extension is imported.
void find_main_thread();

// During a long call: Ctrl-C, or what another signal's handler raises, as nanobind's python_error.
void handle_signals();

}  // namespace elman
