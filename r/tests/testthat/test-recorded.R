# What PyTorch's own layers and cells gave, and their gradients: recorded in the repository that
# this package comes from.

count_from_1 <- function(weights) {
  names(weights) <- sub("^(grad\\.)?weight\\.", "", names(weights))
  convert_weights(weights, "torch", "r-torch")
}

state_in <- function(case, h, c) {
  if (is.null(case[[c]])) case[[h]] else list(case[[h]], case[[c]])
}

expect_recorded <- function(there, gradients, case) {
  tolerance <- if (case$meta$dtype == "float64") 1e-12 else 1e-5
  if (!is.null(there$output)) expect_close(there$output, case$output, tolerance)
  expect_close(gradients$input, case$grad.input, tolerance)
  if (!is.null(case$grad.h_0)) {
    expect_close(gradients$hx, state_in(case, "grad.h_0", "grad.c_0"), tolerance)
  }
  weights <- count_from_1(case[grepl("^grad\\.weight\\.", names(case))])
  expect_close(unname(gradients[names(weights)]), unname(weights), tolerance)
}

# A case of one call as one of one step.
with_steps <- function(case) {
  if (length(dim(case$input)) == 3) return(case)
  for (name in c("input", "output", "G", "grad.input")) dim(case[[name]]) <- c(1, dim(case[[name]]))
  case
}

# A cell's steps one behind the other, and backpropagation through them by hand.
expect_steps <- function(cell, case) {
  steps <- list()
  output <- case$output
  hx <- state_in(case, "h_0", "c_0")
  for (t in seq_len(dim(case$input)[1])) {
    steps[[t]] <- cell$vjp(case$input[t, , ], hx)
    hx <- cell(case$input[t, , ], hx)
    expect_identical(steps[[t]]$hx, hx)
    output[t, , ] <- if (is.list(hx)) hx[[1]] else hx
  }
  nothing <- 0 * output[1, , ]
  d_h <- if (is.null(case$Gh)) nothing else case$Gh
  d_hx <- if (is.list(hx)) list(d_h, case$Gc) else d_h
  input <- case$input
  weights <- lapply(cell$parameters, `*`, 0)
  for (t in rev(seq_along(steps))) {
    above <- case$G[t, , ]
    d_hx <- if (is.list(hx)) list(d_hx[[1]] + above, d_hx[[2]]) else d_hx + above
    gradients <- steps[[t]]$vjp(d_hx)
    d_hx <- gradients$hx
    input[t, , ] <- gradients$input
    weights <- Map(`+`, weights, gradients[names(weights)])
  }
  expect_recorded(list(output = output), c(list(input = input, hx = d_hx), weights), case)
}

test_that("recorded layers come out, and their gradients", {
  builds <- list(gru = nn_gru, lstm = nn_lstm, rnn = nn_rnn)
  all <- cases("torch", "^(gru|rnn|lstm)_.*npz$")
  for (file in names(all)) {
    case <- all[[file]]
    arguments <- c(case$meta$args, list(dtype = case$meta$dtype))
    layer <- suppressWarnings(do.call(builds[[sub("_.*", "", file)]], arguments))
    if (!isTRUE(case$meta$training)) layer$eval()
    layer$load_state_dict(count_from_1(case[grepl("^weight\\.", names(case))]))
    hx <- state_in(case, "h_0", "c_0")
    tolerance <- if (case$meta$dtype == "float64") 1e-12 else 1e-5

    first <- isTRUE(case$meta$args$batch_first)

    # torch pads to the longest row's steps alone.
    cut <- case
    for (name in if (!is.null(case$lengths)) c("input", "grad.input")) {
      steps <- seq_len(dim(case$output)[if (first) 2 else 1])
      cut[[name]] <- if (first) case[[name]][, steps, ] else case[[name]][steps, , ]
    }
    there <- layer$vjp(cut$input, hx, case$lengths)
    expect_recorded(there, there$vjp(case$G, state_in(case, "Gh", "Gc")), cut)

    input <- case$input
    if (!is.null(case$lengths)) {
      input <- nn_utils_rnn_pack_padded_sequence(input, case$lengths, first, FALSE)
    }
    result <- layer(input, hx)
    if (!is.null(case$lengths)) {
      result[[1]] <- nn_utils_rnn_pad_packed_sequence(result[[1]], first)[[1]]
    }
    expect_result(result, list(case$output, state_in(case, "h_n", "c_n")), tolerance)
  }
  expect_gte(length(all), 35)
})

test_that("recorded cells come out, and their gradients", {
  builds <- list(grucell = nn_gru_cell, lstmcell = nn_lstm_cell, rnncell = nn_rnn_cell)
  all <- cases("torch", "cell_.*npz$")
  for (file in names(all)) {
    case <- with_steps(all[[file]])
    arguments <- c(case$meta$args, list(dtype = case$meta$dtype))
    cell <- do.call(builds[[sub("_.*", "", file)]], arguments)
    cell$load_state_dict(count_from_1(case[grepl("^weight\\.", names(case))]))
    expect_steps(cell, case)
  }
  expect_gte(length(all), 5)
})
