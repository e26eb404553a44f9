#' Gated recurrent unit
#'
#' One or more layers, in one or two directions. Each step of a layer computes
#'
#' \deqn{r = \sigma(W_{ir} x + b_{ir} + W_{hr} h + b_{hr})}
#' \deqn{z = \sigma(W_{iz} x + b_{iz} + W_{hz} h + b_{hz})}
#' \deqn{n = \tanh(W_{in} x + b_{in} + r * (W_{hn} h + b_{hn}))}
#' \deqn{h' = (1 - z) * n + z * h}
#'
#' from the input x and the state h before, which is zero at first unless `hx` is given.
#'
#' @section The layer:
#'
#' The value is a function of `input`, `hx = NULL`, `lengths = NULL` and `reset = NULL`. It returns
#' `list(output, h_n)`, and that of [nn_lstm()] `list(output, list(h_n, c_n))`. With L steps, N rows
#' of the batch, D = `input_size`, H = `hidden_size` and K = `num_layers` times the number of
#' directions:
#'
#' * `input` is an array (L, N, D), or (N, L, D) with `batch_first`, or a packed sequence of
#'   [nn_utils_rnn_pack_padded_sequence()].
#' * `hx` is an array (K, N, H), or for [nn_lstm()] `list(h_0, c_0)`, two such arrays; zeros by
#'   default. Layer k's directions stand side by side.
#' * `lengths` holds N whole numbers from 0 to L. Steps past a row's length are not computed: `input`
#'   is not read there, `output` is 0 there, and `h_n`, and `c_n`, is the state after the row's last
#'   step, or `hx` if it has none. The reverse direction starts at each row's last step.
#' * `reset` is a logical array shaped as the time and batch axes of `input`. `TRUE` at a step:
#'   a new episode starts there, and nothing crosses from the step before in either direction.
#' * `output` is an array (L, N, directions * H), laid out as `input`, or a packed sequence if
#'   `input` is one: the last layer's h at every step.
#' * `h_n`, and `c_n`, is an array (K, N, H): the final states.
#'
#' Anything else is an error that names the layer, what it expected and what it got.
#'
#' @section Weights:
#'
#' Layer k, counted from 1, has `weight_ih_l{k}` (G * H, D), `weight_hh_l{k}` (G * H, H),
#' `bias_ih_l{k}` and `bias_hh_l{k}` (G * H), and with the suffix `_reverse` those of the second
#' direction. G is 4 for an LSTM, whose rows are those of i, f, g and o, 3 for a GRU, whose rows are
#' those of r, z and n, and 1 for an RNN. Layers above the first take the directions * H values of
#' the one below instead of D. Every weight starts uniform between
#' \eqn{-1/\sqrt{H}}{-1/sqrt(H)} and \eqn{1/\sqrt{H}}{1/sqrt(H)}.
#'
#' `layer$parameters` is the named list of all weights, and `layer$state_dict()` the same;
#' `layer$load_state_dict(weights)` and `layer$parameters <- weights` set them, and
#' `layer$weight_ih_l1 <- w` sets one. As in torch, a layer is one object under all its names: a copy
#' of it has the same weights.
#'
#' `layer$eval()` turns dropout off, `layer$train()` on again. A new layer has it on.
#'
#' @param input_size number of features D of the input.
#' @param hidden_size number of hidden units H.
#' @param num_layers number of layers. Each above the first reads the output of the one below.
#' @param bias whether there are the weights b.
#' @param batch_first whether input and output are (N, L, ...) instead of (L, N, ...).
#' @param dropout probability that a value between layers is set to 0 in training.
#' @param bidirectional whether there is a second direction, from the end to the start.
#' @param ... must be empty.
#' @param seed of the initial weights and of dropout. By default R's own random numbers choose it, so
#'   that [set.seed()] settles it.
#' @param dtype the precision of the weights and of the computation: `"float32"` or `"float64"`.
#'   Arrays are R's own numbers either way.
#'
#' @return A layer, which is called as a function.
#'
#' @examplesIf reticulate::py_module_available("elman")
#' rnn <- nn_gru(10, 20, 2)
#' input <- array(rnorm(5 * 3 * 10), c(5, 3, 10))
#' h0 <- array(rnorm(2 * 3 * 20), c(2, 3, 20))
#' output <- rnn(input, h0)
#'
#' # Rows of different lengths
#' output <- rnn(input, h0, lengths = c(5, 2, 4))
#'
#' names(rnn$parameters)
#' @export
nn_gru <- function(input_size, hidden_size, num_layers = 1, bias = TRUE, batch_first = FALSE,
                   dropout = 0, bidirectional = FALSE, ..., seed = NULL, dtype = "float32") {
  check_empty("nn_gru", ...)
  new_module("nn_gru", input_size, hidden_size, num_layers, bias, batch_first, dropout,
    bidirectional, seed, dtype
  )
}

#' Long short-term memory
#'
#' One or more layers, in one or two directions. Each step of a layer computes
#'
#' \deqn{i = \sigma(W_{ii} x + b_{ii} + W_{hi} h + b_{hi})}
#' \deqn{f = \sigma(W_{if} x + b_{if} + W_{hf} h + b_{hf})}
#' \deqn{g = \tanh(W_{ig} x + b_{ig} + W_{hg} h + b_{hg})}
#' \deqn{o = \sigma(W_{io} x + b_{io} + W_{ho} h + b_{ho})}
#' \deqn{c' = f * c + i * g}
#' \deqn{h' = o * \tanh(c')}
#'
#' from the input x and the states h and c before, which are zero at first unless `hx` is given.
#'
#' @inheritSection nn_gru The layer
#' @inheritSection nn_gru Weights
#' @inheritParams nn_gru
#' @inherit nn_gru return
#'
#' @examplesIf reticulate::py_module_available("elman")
#' rnn <- nn_lstm(10, 20, 2)
#' input <- array(rnorm(5 * 3 * 10), c(5, 3, 10))
#' h0 <- array(rnorm(2 * 3 * 20), c(2, 3, 20))
#' c0 <- array(rnorm(2 * 3 * 20), c(2, 3, 20))
#' output <- rnn(input, list(h0, c0))
#' @export
nn_lstm <- function(input_size, hidden_size, num_layers = 1, bias = TRUE, batch_first = FALSE,
                    dropout = 0, bidirectional = FALSE, ..., seed = NULL, dtype = "float32") {
  check_empty("nn_lstm", ...)
  new_module("nn_lstm", input_size, hidden_size, num_layers, bias, batch_first, dropout,
    bidirectional, seed, dtype
  )
}

#' Elman recurrent network
#'
#' One or more layers, in one or two directions. Each step of a layer computes
#'
#' \deqn{h' = \tanh(W_{ih} x + b_{ih} + W_{hh} h + b_{hh})}
#'
#' or, with `nonlinearity = "relu"`, the positive part in place of tanh, from the input x and the
#' state h before, which is zero at first unless `hx` is given.
#'
#' @inheritSection nn_gru The layer
#' @inheritSection nn_gru Weights
#' @inheritParams nn_gru
#' @param nonlinearity `"tanh"`, which `NULL` stands for, or `"relu"`.
#' @inherit nn_gru return
#'
#' @examplesIf reticulate::py_module_available("elman")
#' rnn <- nn_rnn(10, 20, 2)
#' input <- array(rnorm(5 * 3 * 10), c(5, 3, 10))
#' h0 <- array(rnorm(2 * 3 * 20), c(2, 3, 20))
#' rnn(input, h0)
#' @export
nn_rnn <- function(input_size, hidden_size, num_layers = 1, nonlinearity = NULL, bias = TRUE,
                   batch_first = FALSE, dropout = 0, bidirectional = FALSE, ..., seed = NULL,
                   dtype = "float32") {
  check_empty("nn_rnn", ...)
  nonlinearity <- if (is.null(nonlinearity)) "tanh" else nonlinearity
  new_module("nn_rnn", input_size, hidden_size, num_layers, bias, batch_first, dropout,
    bidirectional, seed, dtype,
    nonlinearity = nonlinearity
  )
}

new_module <- function(name, input_size, hidden_size, num_layers, bias, batch_first, dropout,
                       bidirectional, seed, dtype, ...) {
  check_dtype(name, dtype)
  if (is.null(seed)) seed <- sample.int(.Machine$integer.max, 1)
  if (dropout > 0 && num_layers == 1) {
    warning(name, ": dropout comes between layers, and num_layers is 1", call. = FALSE)
  }
  self <- list2env(list(
    name = name,
    input_size = whole(name, "input_size", input_size),
    hidden_size = whole(name, "hidden_size", hidden_size),
    num_layers = whole(name, "num_layers", num_layers),
    batch_first = batch_first,
    directions = if (bidirectional) 2L else 1L,
    dtype = dtype
  ))
  build <- python$elman[[toupper(sub("^nn_", "", name))]]
  self$layer <- from_python(name, build(
    self$input_size, self$hidden_size, self$num_layers,
    bias = bias, batch_first = batch_first, dropout = dropout, bidirectional = bidirectional,
    seed = whole(name, "seed", seed), dtype = dtype, ...
  ))
  self$states <- unlist(reticulate::py_to_r(self$layer$spec$cell$states))
  self$layer$train()
  call <- function(input, hx = NULL, lengths = NULL, reset = NULL) {
    run(self, input, hx, lengths, reset)
  }
  structure(call, self = self, class = c("elman_module", "function"))
}

#' @export
`$.elman_module` <- function(x, name) {
  self <- attr(x, "self")
  switch(name,
    parameters = get_weights(self),
    state_dict = function() get_weights(self),
    load_state_dict = function(weights) {
      set_weights(self, weights)
      invisible(x)
    },
    train = function(mode = TRUE) {
      self$layer$train(mode)
      invisible(x)
    },
    eval = function() {
      self$layer$eval()
      invisible(x)
    },
    training = reticulate::py_to_r(self$layer$training),
    get_weights(self)[[name]]
  )
}

#' @export
`$<-.elman_module` <- function(x, name, value) {
  self <- attr(x, "self")
  if (name != "parameters") {
    weights <- get_weights(self)
    weights[[name]] <- value
    value <- weights
  }
  set_weights(self, value)
  x
}

#' @export
print.elman_module <- function(x, ...) {
  self <- attr(x, "self")
  text <- reticulate::py_str(self$layer)
  cat(self$name, sub("^[A-Z]+", "", text), "\n", sep = "")
  invisible(x)
}

# --- Calls ---------------------------------------------------------------------------------------

run <- function(self, input, hx, lengths, reset) {
  if (inherits(input, "elman_packed_sequence")) {
    if (!is.null(lengths) || !is.null(reset)) {
      stop(self$name, ": lengths and reset go with padded input, got a packed sequence",
        call. = FALSE
      )
    }
    return(run_packed(self, input, hx))
  }
  axes <- if (self$batch_first) c("N", "L", "D") else c("L", "N", "D")
  check_numeric(self$name, "input", input)
  if (length(dim(input)) != 3 || dim(input)[3] != self$input_size) {
    stop(self$name, ": input must be an array (", paste(axes, collapse = ", "), ") with D = ",
      self$input_size, ", got ", shape_text(input),
      call. = FALSE
    )
  }
  L <- dim(input)[axes == "L"]
  N <- dim(input)[axes == "N"]
  if (L == 0) stop(self$name, ": input must have at least one step, got none", call. = FALSE)
  if (!is.null(hx)) hx <- states_to_numpy(self, hx, N)
  if (!is.null(lengths)) {
    check_lengths(self$name, lengths, N, 0, L)
    lengths <- to_numpy(lengths, "int64")
  }
  if (!is.null(reset)) {
    if (!is.logical(reset) || anyNA(reset)) {
      stop(self$name, ": reset must be TRUE or FALSE throughout, got ", class(reset)[1],
        call. = FALSE
      )
    }
    check_shape(self$name, "reset", reset, dim(input)[1:2])
    reset <- to_numpy(reset, "bool")
  }
  forward <- self$layer$`__call__`
  result <- from_python(self$name, forward(to_numpy(input, self$dtype), hx, lengths, reset))
  output <- from_numpy(reticulate::py_get_item(result, 0L))
  list(output, states_from_numpy(self, reticulate::py_get_item(result, 1L)))
}

# One state is an array, two are a list here and a tuple in Python.
states_to_numpy <- function(self, hx, N) {
  shape <- c(self$num_layers * self$directions, N, self$hidden_size)
  read <- function(name, x) {
    check_numeric(self$name, name, x)
    check_shape(self$name, name, x, shape)
    to_numpy(x, self$dtype)
  }
  if (length(self$states) == 1) return(read("hx", hx))
  names <- paste0(self$states, "_0")
  if (!is.list(hx) || length(hx) != length(names)) {
    stop(self$name, ": hx must be list(", names_text(names), "), got ",
      if (is.list(hx)) paste("a list of", length(hx)) else class(hx)[1],
      call. = FALSE
    )
  }
  do.call(reticulate::tuple, unname(Map(read, names, hx)))
}

states_from_numpy <- function(self, states) {
  if (length(self$states) == 1) return(from_numpy(states))
  lapply(seq_along(self$states) - 1L, function(i) from_numpy(reticulate::py_get_item(states, i)))
}

run_packed <- function(self, input, hx) {
  padded <- nn_utils_rnn_pad_packed_sequence(input, self$batch_first)
  result <- run(self, padded[[1]], hx, padded[[2]], NULL)
  sorted <- is.null(input$sorted_indices)
  output <- nn_utils_rnn_pack_padded_sequence(result[[1]], padded[[2]], self$batch_first, sorted)
  list(output, result[[2]])
}

# --- Weights: Python counts layers from 0, R from 1 ----------------------------------------------

get_weights <- function(self) {
  weights <- self$layer$state_dict()
  names <- reticulate::py_to_r(python$builtins$list(weights))
  arrays <- lapply(names, function(name) from_numpy(reticulate::py_get_item(weights, name)))
  names(arrays) <- count_layers(names, 1)
  arrays
}

set_weights <- function(self, weights) {
  expected <- get_weights(self)
  missing <- setdiff(names(expected), names(weights))
  unexpected <- setdiff(names(weights), names(expected))
  if (length(missing) || length(unexpected)) {
    stop(self$name, ": weights missing: ", names_text(missing), ", unexpected: ",
      names_text(unexpected),
      call. = FALSE
    )
  }
  for (name in names(expected)) {
    check_numeric(self$name, name, weights[[name]])
    check_shape(self$name, name, weights[[name]], shape(expected[[name]]))
  }
  arrays <- lapply(weights, to_numpy, dtype = self$dtype)
  names(arrays) <- count_layers(names(arrays), -1)
  from_python(self$name, self$layer$load_state_dict(arrays))
}

count_layers <- function(names, by) {
  layer <- as.integer(sub(".*_l([0-9]+).*", "\\1", names))
  mapply(function(name, k) sub("_l[0-9]+", paste0("_l", k + by), name), names, layer,
    USE.NAMES = FALSE
  )
}
