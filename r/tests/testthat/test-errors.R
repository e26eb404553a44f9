test_that("the constructors refuse what cannot be", {
  refused(nn_gru(3.5, 4), "nn_gru: input_size must be a whole number, got 3.5")
  refused(nn_gru(3, "four"), "nn_gru: hidden_size must be a whole number, got \"four\"")
  refused(nn_gru(0, 4), "nn_gru: input_size must be at least 1, got 0")
  refused(nn_rnn(3, 4, 0), "nn_rnn: num_layers must be at least 1, got 0")
  refused(nn_gru(3, 4, 2, dropout = 2), "nn_gru: dropout must lie in [0, 1], got 2")
  refused(nn_rnn(3, 4, nonlinearity = "sine"), "nn_rnn: nonlinearity must be 'tanh' or 'relu'")
  refused(
    nn_gru(3, 4, dtype = "float16"),
    "nn_gru: dtype must be float32 or float64, got \"float16\""
  )
  refused(nn_lstm(3, 4, dtype = NULL), "nn_lstm: dtype must be float32 or float64, got NULL")
  refused(nn_gru(3, 4, bias = "yes"), "nn_gru: bias must be TRUE or FALSE, got \"yes\"")
  refused(nn_gru(3, 4, bidirectional = NA), "nn_gru: bidirectional must be TRUE or FALSE, got NA")
  refused(nn_gru(3, 4, dropout = "a"), "nn_gru: dropout must be a number, got \"a\"")
  refused(nn_gru(3e9, 4), "nn_gru: input_size must be at most 2147483647, got 3e+09")
  refused(nn_gru(3, 2e9), "nn_gru: hidden_size must be at most 536870911, got 2e+09")
  refused(nn_gru(3, 4, 2e9), "nn_gru: num_layers must be at most 65536, got 2e+09")
  refused(nn_gru(2e9, 5e8), "nn_gru: not enough memory for 3.75")
  refused(nn_gru(3, 4, seed = "a"), "nn_gru: seed must be a whole number, got \"a\"")
  refused(nn_gru(3, 4, seed = 1e20), "nn_gru: seed must be at most 2147483647, got 1e+20")
  refused(nn_gru(3, 4, proj_size = 2), "nn_gru: unexpected arguments: proj_size")
  refused(nn_rnn(3, 4, reset_after = FALSE), "nn_rnn: unexpected arguments: reset_after")
  refused(nn_gru(3, 4, reset_after = NA), "nn_gru: reset_after must be TRUE or FALSE, got NA")
  refused(nn_gru_cell(3, 4, reset_after = 0), "nn_gru_cell: reset_after must be TRUE or FALSE")
  refused(nn_gru(3, 4, recompute = "yes"), "nn_gru: recompute must be TRUE or FALSE, got \"yes\"")
  refused(
    nn_lstm(3, 4, proj_size = 4),
    "nn_lstm: proj_size must lie between 0 and hidden_size - 1 = 3, got 4"
  )
  refused(nn_lstm(3, 4, proj_size = -1), "must lie between 0 and hidden_size - 1 = 3, got -1")
  refused(nn_lstm(3, 4, proj_size = "a"), "nn_lstm: proj_size must be a whole number, got \"a\"")
  refused(nn_lstm(3, 0), "nn_lstm: hidden_size must be at least 1, got 0")
})

test_that("a layer refuses input that does not fit", {
  layer <- nn_gru(3, 4, 2)
  x <- array(0, c(5, 2, 3))
  refused(
    layer(array(0, c(5, 2, 4))),
    "nn_gru: input must be an array (L, N, D) or (L, D) with D = 3, got (5, 2, 4)"
  )
  refused(layer(matrix(0, 5, 4)), "(L, N, D) or (L, D) with D = 3, got (5, 4)")
  refused(layer(matrix(0, 0, 3)), "nn_gru: input must have at least one step, got none")
  refused(layer(matrix(0, 5, 3), lengths = c(5, 5)), "lengths must be 1 number, one a row, got 2")
  refused(layer(matrix(0, 5, 3), reset = !1:4), "reset must have the dimensions (5), got (4)")
  refused(layer(matrix(0, 5, 3), array(0, c(2, 1, 4))), "hx must have the dimensions (2, 4), got")
  refused(layer(1:3), "got (3)")
  refused(layer(array("a", c(5, 2, 3))), "nn_gru: input must be numeric, got character")
  refused(layer(array(TRUE, c(5, 2, 3))), "nn_gru: input must be numeric, got logical")
  refused(layer(factor(1:3)), "nn_gru: input must be numeric, got factor")
  refused(layer(data.frame(1:3)), "nn_gru: input must be numeric, got data.frame")
  refused(layer(array(0, c(0, 2, 3))), "nn_gru: input must have at least one step, got none")
  refused(
    nn_rnn(3, 4, batch_first = TRUE)(array(0, c(5, 2, 4))),
    "nn_rnn: input must be an array (N, L, D) or (L, D) with D = 3"
  )
  refused(
    layer(x, array(0, c(1, 2, 4))),
    "nn_gru: hx must have the dimensions (2, 2, 4), got (1, 2, 4)"
  )
  refused(layer(x, TRUE), "nn_gru: hx must be numeric, got logical")
  refused(layer(x, lengths = 1), "nn_gru: lengths must be 2 numbers, one a row, got 1")
  refused(
    layer(x, lengths = c(5, 6)),
    "nn_gru: lengths must be whole numbers from 0 to 5, got 6 for row 2"
  )
  refused(layer(x, lengths = c(-1, 5)), "got -1 for row 1")
  refused(layer(x, lengths = c(1.5, 5)), "got 1.5 for row 1")
  refused(layer(x, lengths = c(NA, 5)), "got NA for row 1")
  refused(
    layer(x, reset = array(TRUE, c(2, 5))),
    "nn_gru: reset must have the dimensions (5, 2), got (2, 5)"
  )
  refused(layer(x, reset = array(0, c(5, 2))), "nn_gru: reset must be TRUE or FALSE throughout")
  refused(layer(x, reset = array(NA, c(5, 2))), "nn_gru: reset must be TRUE or FALSE throughout")
})

test_that("an LSTM refuses states that do not fit", {
  layer <- nn_lstm(3, 4, 2)
  x <- array(0, c(5, 2, 3))
  state <- array(0, c(2, 2, 4))
  refused(layer(x, state), "nn_lstm: hx must be list(h_0, c_0), got array")
  refused(layer(x, list(state)), "nn_lstm: hx must be list(h_0, c_0), got a list of 1")
  refused(
    layer(x, list(state, array(0, c(2, 2, 3)))),
    "nn_lstm: c_0 must have the dimensions (2, 2, 4), got (2, 2, 3)"
  )
  projected <- nn_lstm(3, 4, 2, proj_size = 3)
  refused(projected(x, list(state, state)), "nn_lstm: h_0 must have the dimensions (2, 2, 3)")
  refused(layer(x, list(state[1, , ], state)), "nn_lstm: h_0 must have the dimensions (2, 2, 4)")
  refused(layer(x, list(state, "c")), "nn_lstm: c_0 must be numeric, got character")
  refused(layer(x[, , 1:2], list(state, state)), "nn_lstm: input must be an array (L, N, D)")
})

test_that("vjp refuses gradients that do not fit", {
  x <- array(0, c(5, 2, 3))
  back <- nn_lstm(3, 4, 2)$vjp(x)$vjp
  state <- array(0, c(2, 2, 4))
  refused(back(x), "nn_lstm: d_output must have the dimensions (5, 2, 4), got (5, 2, 3)")
  refused(back("a"), "nn_lstm: d_output must be numeric, got character")
  refused(back(NULL, state), "nn_lstm: d_hx must be list(d_h_n, d_c_n), got array")
  refused(
    back(NULL, list(NULL, x)),
    "nn_lstm: d_c_n must have the dimensions (2, 2, 4), got (5, 2, 3)"
  )
  refused(
    nn_gru(3, 4)$vjp(x)$vjp(NULL, state),
    "nn_gru: d_hx must have the dimensions (1, 2, 4), got (2, 2, 4)"
  )
  refused(
    nn_gru(3, 4)$vjp(nn_utils_rnn_pack_padded_sequence(x, c(5, 3))),
    "nn_gru: vjp takes padded input and lengths, got a packed sequence"
  )
})

test_that("a cell refuses what does not fit", {
  refused(nn_gru_cell(0, 4), "nn_gru_cell: input_size must be at least 1, got 0")
  refused(nn_rnn_cell(3, 4, nonlinearity = "sine"), "nn_rnn_cell: nonlinearity must be 'tanh' or")
  refused(nn_lstm_cell(3, 4, num_layers = 2), "nn_lstm_cell: unexpected arguments: num_layers")
  refused(nn_gru_cell(3, 4, dtype = "half"), "nn_gru_cell: dtype must be float32 or float64")
  cell <- nn_gru_cell(3, 4)
  refused(cell(1:4), "nn_gru_cell: input must be an array (N, D) or D numbers with D = 3, got (4)")
  refused(cell(array(0, c(5, 2, 3))), "got (5, 2, 3)")
  refused(cell("a"), "nn_gru_cell: input must be numeric, got character")
  refused(cell(1:3, matrix(0, 1, 4)), "nn_gru_cell: hx must have the dimensions (4), got (1, 4)")
  refused(
    cell(matrix(0, 2, 3), matrix(0, 3, 4)),
    "nn_gru_cell: hx must have the dimensions (2, 4), got (3, 4)"
  )
  lstm <- nn_lstm_cell(3, 4)
  refused(lstm(1:3, numeric(4)), "nn_lstm_cell: hx must be list(h, c), got numeric")
  refused(lstm(1:3, list(numeric(4), 1)), "nn_lstm_cell: c must have the dimensions (4), got (1)")
  refused(lstm$vjp(1:3)$vjp(numeric(4)), "nn_lstm_cell: d_hx must be list(d_h, d_c), got numeric")
})

test_that("NaN and NA go through without a warning, and into no other row", {
  for (missing in c(NaN, NA)) {
    for (dtype in c("float32", "float64")) {
      x <- array(0, c(5, 2, 3))
      x[1, 1, 1] <- missing
      output <- expect_silent(nn_gru(3, 4, dtype = dtype)(x))[[1]]
      expect_true(all(is.na(output[, 1, ])))
      expect_false(anyNA(output[, 2, ]))
    }
  }
  all <- array(NA, c(5, 2, 3)) # which R takes for logical
  expect_true(all(is.na(expect_silent(nn_gru(3, 4)(all))[[1]])))
  counts <- array(c(NA, 1:29), c(5, 2, 3))
  expect_true(all(is.na(nn_gru(3, 4)(counts)[[1]][, 1, ])))
})

test_that("numbers of a class are what its method makes of them", {
  registerS3method("as.double", "cents", function(x, ...) as.double(unclass(x)) / 100)
  x <- array(round(100 * numbers(5, 2, 3)), c(5, 2, 3))
  layer <- nn_gru(3, 4)
  expect_identical(layer(structure(x, class = "cents")), layer(x / 100))
  expect_identical(layer(structure(x, class = "other")), layer(x))
})

test_that("an instruction set that is not to be had is an error", {
  script <- "library(elman); tryCatch(nn_gru(3, 4), error = function(e) cat(conditionMessage(e)))"
  said <- in_another_process(script, "ELMAN_ISA=sse")
  expect_match(said, "nn_gru: ELMAN_ISA: expected portable, avx2 or avx512", fixed = TRUE)
})
