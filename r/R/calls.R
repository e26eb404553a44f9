# Calls of layers and cells. A cell is a layer of one step.

run <- function(self, input, hx, lengths, reset, training) {
  if (is.list(input) && inherits(input, "elman_packed_sequence")) {
    if (!is.null(lengths) || !is.null(reset)) {
      fail(self$name, "lengths and reset go with padded input, got a packed sequence")
    }
    return(run_packed(self, input, hx, training))
  }
  call <- read_call(self, input, hx, lengths, reset)
  result <- forward(self, call, dropout_masks(self, call$input, training), FALSE)
  if (!call$is_batched) result <- lapply(result, alone)
  list(result[[1]], given_back(result[-1]))
}

run_packed <- function(self, input, hx, training) {
  padded <- nn_utils_rnn_pad_packed_sequence(input, self$batch_first)
  result <- run(self, padded[[1]], hx, padded[[2]], NULL, training)
  sorted <- is.null(input$sorted_indices)
  output <- nn_utils_rnn_pack_padded_sequence(result[[1]], padded[[2]], self$batch_first, sorted)
  list(output, result[[2]])
}

run_cell <- function(self, input, hx) {
  call <- read_cell_call(self, input, hx)
  given_back(reshape(forward(self, call, NULL, FALSE)[-1], call$shape))
}

vjp <- function(self, input, hx, lengths, reset) {
  if (inherits(input, "elman_packed_sequence")) {
    fail(self$name, "vjp takes padded input and lengths, got a packed sequence")
  }
  call <- read_call(self, input, hx, lengths, reset)
  there <- differentiate(self, call, dropout_masks(self, call$input, self$training))
  shaped <- function(a) if (call$is_batched) a else alone(a)
  output <- shaped(there$output)
  states <- lapply(there$states, shaped)
  back <- function(d_output = NULL, d_hx = NULL) {
    if (!is.null(d_output)) d_output <- array_of(self$name, "d_output", d_output, dim(output))
    shapes <- lapply(states, dim)
    d_states <- read_states(self, "d_hx", c("d_h_n", "d_c_n"), d_hx, shapes, may_lack = TRUE)
    gradients <- there$back(d_output, d_states)
    d_first <- given_back(lapply(gradients$states, shaped))
    c(list(input = shaped(gradients$input), hx = d_first), gradients$weights)
  }
  list(output = output, hx = given_back(states), vjp = back)
}

vjp_cell <- function(self, input, hx) {
  call <- read_cell_call(self, input, hx)
  there <- differentiate(self, call, NULL)
  back <- function(d_hx) {
    shapes <- cell_shapes(self, call$shape)
    d_states <- read_states(self, "d_hx", c("d_h", "d_c"), d_hx, shapes, may_lack = TRUE)
    gradients <- there$back(NULL, d_states)
    dim(gradients$input) <- dim(input)
    states <- given_back(reshape(gradients$states, call$shape))
    c(list(input = gradients$input, hx = states), gradients$weights)
  }
  list(hx = given_back(reshape(there$states, call$shape)), vjp = back)
}

# --- The engine ----------------------------------------------------------------------------------

forward <- function(self, call, masks, keep) {
  .Call(
    C_forward, self$handle, call$input, call$batch_first, call$lengths, call$reset, call$states,
    masks, keep
  )
}

# The results, and the way back, which keeps to the weights of now.
differentiate <- function(self, call, masks) {
  handle <- self$handle
  result <- forward(self, call, masks, TRUE)
  states <- 1 + seq_len(self$states)
  kept <- result[[self$states + 2]]
  back <- function(d_output, d_states) {
    gradients <- .Call(
      C_backward, handle, call$input, call$batch_first, call$lengths, call$reset, d_states, masks,
      kept, d_output
    )
    weights <- setNames(gradients[[self$states + 2]], names(self$shapes))
    list(input = gradients[[1]], states = gradients[states], weights = weights)
  }
  list(output = result[[1]], states = result[states], back = back)
}

# What values between layers are multiplied by, from below each layer but the first, or NULL.
dropout_masks <- function(self, input, training) {
  p <- self$dropout
  if (!training || p == 0 || self$num_layers == 1) return(NULL)
  size <- prod(dim(input)[1:2]) * self$directions * self$output_size
  lapply(seq_len(self$num_layers - 1), function(k) {
    if (p < 1) (runif(size) >= p) / (1 - p) else numeric(size)
  })
}

# --- Arguments -----------------------------------------------------------------------------------

read_call <- function(self, input, hx, lengths, reset) {
  input <- numbers_of(self$name, "input", input)
  size <- dim(input)
  axes <- length(size)
  if (axes < 2 || axes > 3 || size[axes] != self$input_size) {
    fail(self$name, "input must be an array ", if (self$batch_first) "(N, L, D)" else "(L, N, D)",
      " or (L, D) with D = ", self$input_size, ", got ", shape_text(input)
    )
  }
  is_batched <- axes == 3
  if (!is_batched) dim(input) <- c(size[1], 1L, size[2])
  batch_first <- is_batched && self$batch_first
  L <- size[if (batch_first) 2 else 1]
  N <- if (!is_batched) 1L else size[if (batch_first) 1 else 2]
  if (L == 0) fail(self$name, "input must have at least one step, got none")
  list(
    input = input, is_batched = is_batched, batch_first = batch_first,
    states = read_states(self, "hx", c("h_0", "c_0"), hx, state_shapes(self, if (is_batched) N)),
    lengths = if (!is.null(lengths)) lengths_of(self$name, lengths, N, 0, L),
    reset = if (!is.null(reset)) reset_of(self$name, reset, size[-axes])
  )
}

# Of a cell, whose input is (N, D), or D numbers; `shape` is that of its states, or NULL.
read_cell_call <- function(self, input, hx) {
  input <- numbers_of(self$name, "input", input)
  size <- shape(input)
  if (length(size) > 2 || size[length(size)] != self$input_size) {
    fail(self$name, "input must be an array (N, D) or D numbers with D = ", self$input_size,
      ", got ", shape_text(input)
    )
  }
  H <- self$hidden_size
  N <- if (length(size) == 2) size[1] else 1L
  shape <- if (length(size) == 2) c(N, H)
  states <- read_states(self, "hx", c("h", "c"), hx, cell_shapes(self, shape))
  dim(input) <- c(1L, N, self$input_size)
  list(input = input, batch_first = FALSE, states = states, shape = shape)
}

cell_shapes <- function(self, shape) {
  rep(list(if (is.null(shape)) self$hidden_size else shape), 2)
}

# Of h, and of an LSTM's c; N is NULL without a batch.
state_shapes <- function(self, N) {
  K <- self$num_layers * self$directions
  list(c(K, N, self$output_size), c(K, N, self$hidden_size))
}

# A list of each state, or NULL. One state is given as an array, two as a list of `parts`.
read_states <- function(self, name, parts, given, shapes, may_lack = FALSE) {
  if (is.null(given)) return(NULL)
  if (self$states == 1) return(list(array_of(self$name, name, given, shapes[[1]])))
  if (!is.list(given) || length(given) != 2) {
    fail(self$name, name, " must be list(", names_text(parts), "), got ",
      if (is.list(given)) paste("a list of", length(given)) else class(given)[1]
    )
  }
  lapply(1:2, function(i) {
    state <- given[[i]]
    if (!may_lack || !is.null(state)) array_of(self$name, parts[i], state, shapes[[i]])
  })
}

given_back <- function(states) if (length(states) == 1) states[[1]] else states

reshape <- function(states, shape) {
  lapply(states, function(state) {
    dim(state) <- shape
    state
  })
}

# Without the axis of rows, of which there is one.
alone <- function(a) {
  dim(a) <- dim(a)[-2]
  a
}
