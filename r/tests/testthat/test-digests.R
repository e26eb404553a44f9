# What the NumPy package gave, bit for bit: tools/digests.py records it, by the same formulas.

numbers_by_formula <- function(which, shape) {
  place <- seq_len(prod(shape)) - 1
  values <- (place * 7919 + which * 104729) %% 2003 / 2003 - 0.5
  if (which >= 10) values <- values / 4
  if (length(shape) == 1) values else aperm(array(values, rev(shape)))
}

digest <- function(arrays) {
  path <- tempfile()
  on.exit(unlink(path))
  in_rows <- lapply(arrays, function(a) if (is.null(dim(a))) a else as.vector(aperm(a)))
  writeBin(unlist(in_rows), path, endian = "little")
  unname(tools::md5sum(path))
}

builders <- list(
  list(
    rnn_tanh = nn_rnn, rnn_relu = function(...) nn_rnn(..., nonlinearity = "relu"),
    gru = nn_gru, gru_before = function(...) nn_gru(..., reset_after = FALSE),
    lstm = nn_lstm, lstm_projected = function(D, H, ...) nn_lstm(D, H, ..., proj_size = H - 1)
  ),
  list(
    rnn_tanh = nn_rnn_cell, rnn_relu = function(...) nn_rnn_cell(..., nonlinearity = "relu"),
    gru = nn_gru_cell, gru_before = function(...) nn_gru_cell(..., reset_after = FALSE),
    lstm = nn_lstm_cell
  )
)

layer_of <- function(case) {
  build <- builders[[case$cell + 1]][[case$kind]]
  layer <- if (case$cell) {
    build(case$D, case$H, dtype = case$dtype)
  } else {
    build(case$D, case$H, case$layers,
      bias = case$bias == 1, batch_first = case$batch_first == 1,
      bidirectional = case$bidirectional == 1, dtype = case$dtype
    )
  }
  shapes <- lapply(layer$parameters, function(w) if (is.null(dim(w))) length(w) else dim(w))
  layer$load_state_dict(Map(numbers_by_formula, 9 + seq_along(shapes), shapes) |>
    setNames(names(shapes)))
  layer
}

state_of <- function(case, from, shape) {
  h <- numbers_by_formula(from, shape - c(0, 0, case$kind == "lstm_projected")[seq_along(shape)])
  if (startsWith(case$kind, "lstm")) list(h, numbers_by_formula(from + 1, shape)) else h
}

listed <- function(states) if (is.list(states)) states else list(states)

# Each case's digests of output, of the final states, and of all gradients.
compute <- function(case) {
  layer <- layer_of(case)
  L <- case$L
  N <- case$N
  if (case$cell) {
    shape <- c(N, case$H)
    there <- layer$vjp(numbers_by_formula(0, c(N, case$D)), state_of(case, 1, shape))
    gradients <- there$vjp(state_of(case, 4, shape))
    output <- ""
  } else {
    axes <- if (case$batch_first) c(N, L) else c(L, N)
    shape <- c(case$layers * (1 + case$bidirectional), N, case$H)
    there <- layer$vjp(
      numbers_by_formula(0, c(axes, case$D)),
      if (case$states) state_of(case, 1, shape),
      if (case$lengths) ((seq_len(N) - 1) * 5 + 2) %% (L + 1),
      if (case$reset) aperm(array((seq_len(L * N) - 1) %% 5 == 3, rev(axes)))
    )
    d_output <- numbers_by_formula(3, dim(there$output))
    gradients <- there$vjp(d_output, state_of(case, 4, shape))
    output <- digest(list(there$output))
  }
  gradients <- c(list(gradients$input), listed(gradients$hx), gradients[-(1:2)])
  c(output, digest(listed(there$hx)), digest(gradients))
}

recorded <- read.csv("digests.csv", na.strings = character())

test_that("results and gradients have the NumPy package's bits", {
  expect_gt(nrow(recorded), 50)
  for (i in seq_len(nrow(recorded))) {
    case <- recorded[i, ]
    want <- unlist(case[c("output", "hx", "gradients")], use.names = FALSE)
    expect_identical(compute(case), want, info = paste(names(case), case, collapse = " "))
  }
})

test_that("a call without gradients has the same bits, on any number of threads", {
  before <- elman_get_num_threads()
  on.exit(elman_set_num_threads(before))
  case <- recorded[recorded$L == 100 & recorded$kind == "lstm" & recorded$dtype == "float32", ]
  layer <- layer_of(case)
  input <- numbers_by_formula(0, c(case$N, case$L, case$D))
  hx <- state_of(case, 1, c(1, case$N, case$H))
  for (threads in 1:3) {
    elman_set_num_threads(threads)
    result <- layer(input, hx, ((seq_len(case$N) - 1) * 5 + 2) %% (case$L + 1))
    expect_identical(c(digest(result[1]), digest(result[[2]])), c(case$output, case$hx))
    expect_identical(compute(case), c(case$output, case$hx, case$gradients))
  }
})
