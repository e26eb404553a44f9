#' Single steps
#'
#' One step of an Elman recurrent network, a gated recurrent unit or long short-term memory, which
#' compute what [nn_rnn()], [nn_gru()] and [nn_lstm()] do at each step.
#'
#' @section The cell:
#'
#' The value is a function of `input` and `hx = NULL`. With N rows of the batch, D = `input_size`
#' and H = `hidden_size`:
#'
#' * `input` is a matrix (N, D), or a vector of D numbers, one row.
#' * `hx` is the state h before, a matrix (N, H), or a vector of H numbers if `input` is a vector;
#'   for an LSTM `list(h, c)`, two such. Zeros by default.
#'
#' It returns h after the step, shaped as `hx`, and that of an LSTM `list(h, c)`.
#'
#' @section Gradients:
#'
#' `cell$vjp(input, hx = NULL)` returns a list of `hx`, the state after the step, and `vjp`, a
#' function of `d_hx`, which is shaped as this; one of an LSTM's two may be `NULL` for zeros. It
#' returns the gradients of `sum(hx * d_hx)`: a list of `input` and `hx`, shaped as the cell takes
#' them, and of every weight by its name.
#'
#' @section Weights:
#'
#' `weight_ih` (G * H, D), `weight_hh` (G * H, H), `bias_ih` and `bias_hh` (G * H), as in
#' [nn_gru()], which says how to read and set them.
#'
#' @inheritParams nn_rnn
#' @param nonlinearity `"tanh"` or `"relu"`.
#' @param reset_after whether a GRU's reset gate is applied after the recurrent product: see
#'   [nn_gru()].
#'
#' @return A cell, which is called as a function.
#'
#' @examples
#' cell <- nn_gru_cell(10, 20)
#' h <- matrix(0, 3, 20)
#' for (step in 1:5) h <- cell(matrix(rnorm(3 * 10), 3, 10), h)
#' dim(h)
#'
#' lstm <- nn_lstm_cell(10, 20)
#' state <- NULL
#' for (step in 1:5) state <- lstm(rnorm(10), state)
#' lengths(state)
#' @name cells
NULL

#' @rdname cells
#' @export
nn_rnn_cell <- function(input_size, hidden_size, bias = TRUE, nonlinearity = "tanh", ...,
                        seed = NULL, dtype = "float32") {
  check_empty("nn_rnn_cell", ...)
  check_nonlinearity("nn_rnn_cell", nonlinearity)
  new_cell("nn_rnn_cell", paste0("rnn_", nonlinearity), input_size, hidden_size, bias, seed, dtype,
    nonlinearity = nonlinearity
  )
}

#' @rdname cells
#' @export
nn_gru_cell <- function(input_size, hidden_size, bias = TRUE, ..., reset_after = TRUE,
                        seed = NULL, dtype = "float32") {
  check_empty("nn_gru_cell", ...)
  cell <- gru_named("nn_gru_cell", reset_after)
  new_cell("nn_gru_cell", cell, input_size, hidden_size, bias, seed, dtype,
    reset_after = reset_after
  )
}

#' @rdname cells
#' @export
nn_lstm_cell <- function(input_size, hidden_size, bias = TRUE, ..., seed = NULL,
                         dtype = "float32") {
  check_empty("nn_lstm_cell", ...)
  new_cell("nn_lstm_cell", "lstm", input_size, hidden_size, bias, seed, dtype)
}

new_cell <- function(name, cell, input_size, hidden_size, bias, seed, dtype, ...) {
  arguments <- list(input_size = input_size, hidden_size = hidden_size, bias = bias, ...)
  new_module(name, cell, TRUE, arguments, seed, dtype)
}
