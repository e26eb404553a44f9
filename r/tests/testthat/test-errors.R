refused <- function(expr, message) expect_error(expr, message, fixed = TRUE)

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
  refused(nn_gru(3, 4, bias = "yes"), "nn_gru: bias must be a bool, got 'yes'")
  refused(nn_gru(3, 4, proj_size = 2), "nn_gru: unexpected arguments: proj_size")
  refused(nn_lstm(3, 4, proj_size = 2), "nn_lstm: unexpected arguments: proj_size")
  refused(nn_lstm(3, 0), "nn_lstm: hidden_size must be at least 1, got 0")
})

test_that("a layer refuses input that does not fit", {
  layer <- nn_gru(3, 4, 2)
  x <- array(0, c(5, 2, 3))
  refused(
    layer(array(0, c(5, 2, 4))),
    "nn_gru: input must be an array (L, N, D) with D = 3, got (5, 2, 4)"
  )
  refused(layer(matrix(0, 5, 3)), "nn_gru: input must be an array (L, N, D) with D = 3, got (5, 3)")
  refused(layer(1:3), "got (3)")
  refused(layer(array("a", c(5, 2, 3))), "nn_gru: input must be numeric, got array")
  refused(layer(array(0, c(0, 2, 3))), "nn_gru: input must have at least one step, got none")
  refused(
    nn_rnn(3, 4, batch_first = TRUE)(array(0, c(5, 2, 4))),
    "nn_rnn: input must be an array (N, L, D) with D = 3"
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
  refused(layer(x, list(state[1, , ], state)), "nn_lstm: h_0 must have the dimensions (2, 2, 4)")
  refused(layer(x, list(state, "c")), "nn_lstm: c_0 must be numeric, got character")
  refused(layer(x[, , 1:2], list(state, state)), "nn_lstm: input must be an array (L, N, D)")
})

test_that("NaN goes through, and into no other row", {
  x <- array(0, c(5, 2, 3))
  x[1, 1, 1] <- NaN
  output <- nn_gru(3, 4)(x)[[1]]
  expect_true(all(is.nan(output[, 1, ])))
  expect_false(anyNA(output[, 2, ]))
})
