# A layer written to be obvious: one step of one row at a time. And what the tests share.

sigmoid <- function(a) 1 / (1 + exp(-a))

# The state is list(h), of an LSTM list(h, c).
naive_step <- function(kind, w, x, state) {
  h <- state[[1]]
  H <- length(state[[length(state)]])
  a <- drop(w$ih %*% x) + w$b_ih
  u <- drop(w$hh %*% h) + w$b_hh
  gate <- function(v, k) v[(k - 1) * H + 1:H]
  switch(kind,
    tanh = list(tanh(a + u)),
    relu = list(pmax(0, a + u)),
    gru = {
      r <- sigmoid(gate(a, 1) + gate(u, 1))
      z <- sigmoid(gate(a, 2) + gate(u, 2))
      n <- tanh(gate(a, 3) + r * gate(u, 3))
      list((1 - z) * n + z * h)
    },
    before = {
      r <- sigmoid(gate(a, 1) + gate(u, 1))
      z <- sigmoid(gate(a, 2) + gate(u, 2))
      n <- tanh(gate(a, 3) + gate(drop(w$hh %*% (r * h)) + w$b_hh, 3))
      list((1 - z) * n + z * h)
    },
    lstm = ,
    projected = {
      i <- sigmoid(gate(a + u, 1))
      f <- sigmoid(gate(a + u, 2))
      g <- tanh(gate(a + u, 3))
      c <- f * state[[2]] + i * g
      h <- sigmoid(gate(a + u, 4)) * tanh(c)
      list(if (is.null(w$hr)) h else drop(w$hr %*% h), c)
    }
  )
}

naive_weights <- function(weights, layer, direction) {
  suffix <- paste0("_l", layer, if (direction == 2) "_reverse")
  bias <- weights[[paste0("bias_ih", suffix)]]
  list(
    ih = weights[[paste0("weight_ih", suffix)]],
    hh = weights[[paste0("weight_hh", suffix)]],
    hr = weights[[paste0("weight_hr", suffix)]],
    b_ih = if (is.null(bias)) 0 else bias,
    b_hh = if (is.null(bias)) 0 else weights[[paste0("bias_hh", suffix)]]
  )
}

# x (L, N, D), hx (K, N, P), of an LSTM list(h_0, c_0), lengths (N), reset (L, N). Returns output
# and the final states, as hx has them.
naive <- function(kind, weights, x, hx, lengths = rep(dim(x)[1], dim(x)[2]), reset = NULL) {
  L <- dim(x)[1]
  N <- dim(x)[2]
  states <- if (is.list(hx)) hx else list(hx)
  P <- dim(states[[1]])[3]
  directions <- if ("weight_ih_l1_reverse" %in% names(weights)) 2 else 1
  if (is.null(reset)) reset <- array(FALSE, c(L, N))
  for (layer in seq_len(dim(states[[1]])[1] / directions)) {
    output <- array(0, c(L, N, directions * P))
    for (direction in seq_len(directions)) {
      k <- (layer - 1) * directions + direction
      w <- naive_weights(weights, layer, direction)
      for (n in seq_len(N)) {
        state <- lapply(states, function(s) s[k, n, ])
        steps <- seq_len(lengths[n])
        for (t in if (direction == 2) rev(steps) else steps) {
          starts <- if (direction == 2) t < lengths[n] && reset[t + 1, n] else reset[t, n]
          if (starts) state <- lapply(state, function(s) 0 * s)
          state <- naive_step(kind, w, x[t, n, ], state)
          output[t, n, (direction - 1) * P + 1:P] <- state[[1]]
        }
        # What leaves the row at its first step crosses into no episode: reset there changes nothing.
        for (i in seq_along(state)) states[[i]][k, n, ] <- state[[i]]
      }
    }
    x <- output
  }
  list(output, if (is.list(hx)) states else states[[1]])
}

numbers <- function(...) array(rnorm(prod(...)), c(...))

# A state of random numbers: an array, or a list of two, of which h is of fewer if it is projected.
states <- function(kind, ...) {
  fewer <- replace(c(...), ...length(), ...elt(...length()) - 1)
  switch(kind,
    lstm = list(numbers(...), numbers(...)),
    projected = list(numbers(fewer), numbers(...)),
    numbers(...)
  )
}

zeros <- function(kind, ...) {
  all <- states(kind, ...)
  if (is.list(all)) lapply(all, `*`, 0) else 0 * all
}

expect_close <- function(got, want, tolerance) {
  if (is.list(want)) {
    expect_length(got, length(want))
    return(invisible(Map(function(g, w) expect_close(g, w, tolerance), got, want)))
  }
  expect_identical(dim(got), dim(want))
  expect_lte(max(abs(got - want)), tolerance * max(abs(want)))
}

expect_result <- function(got, want, tolerance = 1e-12) {
  expect_close(got, want, tolerance)
}

refused <- function(expr, message) expect_error(expr, message, fixed = TRUE)

layers <- list(
  gru = function(...) nn_gru(...),
  before = function(...) nn_gru(..., reset_after = FALSE),
  lstm = function(...) nn_lstm(...),
  projected = function(D, H, ...) nn_lstm(D, H, ..., proj_size = H - 1),
  tanh = function(...) nn_rnn(...),
  relu = function(...) nn_rnn(..., nonlinearity = "relu")
)

# What a script prints that runs in a new R, with environment variables.
in_another_process <- function(script, environment = character()) {
  path <- tempfile(fileext = ".R")
  on.exit(unlink(path))
  writeLines(c(deparse(call(".libPaths", .libPaths())), script), path)
  rscript <- file.path(R.home("bin"), "Rscript")
  said <- system2(rscript, shQuote(path), stdout = TRUE, stderr = TRUE, env = environment)
  paste(said, collapse = "\n")
}

cells <- list(
  gru = function(...) nn_gru_cell(...),
  before = function(...) nn_gru_cell(..., reset_after = FALSE),
  lstm = function(...) nn_lstm_cell(...),
  tanh = function(...) nn_rnn_cell(...),
  relu = function(...) nn_rnn_cell(..., nonlinearity = "relu")
)
