# A layer written to be obvious: one step of one row at a time. And what the tests share.

sigmoid <- function(a) 1 / (1 + exp(-a))

naive_step <- function(kind, w, x, h) {
  a <- drop(w$ih %*% x) + w$b_ih
  u <- drop(w$hh %*% h) + w$b_hh
  if (kind == "tanh") return(tanh(a + u))
  if (kind == "relu") return(pmax(0, a + u))
  H <- length(h)
  r <- sigmoid(a[1:H] + u[1:H])
  z <- sigmoid(a[H + 1:H] + u[H + 1:H])
  n <- tanh(a[2 * H + 1:H] + r * u[2 * H + 1:H])
  (1 - z) * n + z * h
}

naive_weights <- function(weights, layer, direction) {
  suffix <- paste0("_l", layer, if (direction == 2) "_reverse")
  bias <- weights[[paste0("bias_ih", suffix)]]
  list(
    ih = weights[[paste0("weight_ih", suffix)]],
    hh = weights[[paste0("weight_hh", suffix)]],
    b_ih = if (is.null(bias)) 0 else bias,
    b_hh = if (is.null(bias)) 0 else weights[[paste0("bias_hh", suffix)]]
  )
}

# x (L, N, D), h0 (K, N, H), lengths (N), reset (L, N). Returns output and h_n.
naive <- function(kind, weights, x, h0, lengths = rep(dim(x)[1], dim(x)[2]), reset = NULL) {
  L <- dim(x)[1]
  N <- dim(x)[2]
  H <- dim(h0)[3]
  directions <- if ("weight_ih_l1_reverse" %in% names(weights)) 2 else 1
  if (is.null(reset)) reset <- array(FALSE, c(L, N))
  for (layer in seq_len(dim(h0)[1] / directions)) {
    output <- array(0, c(L, N, directions * H))
    for (direction in seq_len(directions)) {
      k <- (layer - 1) * directions + direction
      w <- naive_weights(weights, layer, direction)
      for (n in seq_len(N)) {
        h <- h0[k, n, ]
        steps <- seq_len(lengths[n])
        for (t in if (direction == 2) rev(steps) else steps) {
          starts <- if (direction == 2) t < lengths[n] && reset[t + 1, n] else reset[t, n]
          if (starts) h <- 0 * h
          h <- naive_step(kind, w, x[t, n, ], h)
          output[t, n, (direction - 1) * H + 1:H] <- h
        }
        # What leaves the row at its first step crosses into no episode: reset there changes nothing.
        h0[k, n, ] <- h
      }
    }
    x <- output
  }
  list(output, h0)
}

numbers <- function(...) array(rnorm(prod(...)), c(...))

expect_close <- function(got, want, tolerance) {
  expect_identical(dim(got), dim(want))
  expect_lte(max(abs(got - want)), tolerance * max(abs(want)))
}

expect_result <- function(got, want, tolerance = 1e-12) {
  expect_length(got, 2)
  expect_close(got[[1]], want[[1]], tolerance)
  expect_close(got[[2]], want[[2]], tolerance)
}

layers <- list(
  gru = function(...) nn_gru(...),
  tanh = function(...) nn_rnn(...),
  relu = function(...) nn_rnn(..., nonlinearity = "relu")
)
