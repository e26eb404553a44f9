#' Elman's recurrent layers for R
#'
#' [nn_rnn()], [nn_gru()] and [nn_lstm()] take the arguments of the functions of these names in torch
#' for R, hold the same weights under the same names, and give the same results, on R's own arrays.
#' They take `lengths` and `reset` besides.
#'
#' The layers are computed by the Python package elman. reticulate finds the Python that has it, for
#' one by the environment variable `RETICULATE_PYTHON`.
#'
#' @keywords internal
"_PACKAGE"

# The Python modules, filled in when the package is loaded; Python itself starts at the first call.
python <- new.env()

.onLoad <- function(libname, pkgname) {
  for (name in c("elman", "numpy", "builtins")) {
    python[[name]] <- reticulate::import(name, convert = FALSE, delay_load = TRUE)
  }
}
