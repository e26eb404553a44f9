test_that("weights have torch's names, layers counted from 1", {
  layer <- nn_gru(3, 4, 2, bidirectional = TRUE)
  shapes <- lapply(layer$parameters, function(w) if (is.null(dim(w))) length(w) else dim(w))
  one <- function(size) list(c(12L, size), c(12L, 4L), 12L, 12L)
  names <- c("weight_ih", "weight_hh", "bias_ih", "bias_hh")
  suffixes <- c("_l1", "_l1_reverse", "_l2", "_l2_reverse")
  want <- c(one(3L), one(3L), one(8L), one(8L))
  names(want) <- paste0(names, rep(suffixes, each = 4))
  expect_identical(shapes, want)
  lstm <- nn_lstm(3, 4)$parameters
  expect_identical(dim(lstm$weight_hh_l1), c(16L, 4L))
  expect_length(lstm$bias_hh_l1, 16)
  expect_named(nn_rnn(3, 4, bias = FALSE)$parameters, c("weight_ih_l1", "weight_hh_l1"))
  expect_identical(layer$state_dict(), layer$parameters)
  expect_named(nn_rnn(1, 1, 11, bias = FALSE)$parameters[21:22], c("weight_ih_l11", "weight_hh_l11"))
})

test_that("weights that are set come back, and count", {
  layer <- nn_gru(3, 4, dtype = "float64")
  weights <- lapply(layer$parameters, function(w) w + 1)
  layer$load_state_dict(rev(weights))
  expect_identical(layer$parameters, weights)
  x <- array(rnorm(30), c(5, 2, 3))
  expect_result(layer(x), naive("gru", weights, x, array(0, c(1, 2, 4))))

  layer$parameters <- lapply(weights, function(w) w * 2)
  expect_identical(layer$bias_ih_l1, weights$bias_ih_l1 * 2)
  layer$weight_ih_l1 <- weights$weight_ih_l1
  expect_identical(layer$weight_ih_l1, weights$weight_ih_l1)
  expect_identical(layer$bias_ih_l1, weights$bias_ih_l1 * 2)
})

test_that("rows and columns are not mistaken for each other", {
  layer <- nn_rnn(2, 3, bias = FALSE, nonlinearity = "relu", dtype = "float64")
  layer$weight_ih_l1 <- matrix(1:6, 3, 2)
  layer$weight_hh_l1 <- matrix(0, 3, 3)
  expect_equal(layer(array(c(1, 0), c(1, 1, 2)))[[1]][1, 1, ], 1:3)
  expect_equal(layer(array(c(0, 1), c(1, 1, 2)))[[1]][1, 1, ], 4:6)
})

test_that("a copy is the same layer", {
  layer <- nn_gru(3, 4)
  copy <- layer
  copy$bias_ih_l1 <- rep(1, 12)
  expect_identical(layer$bias_ih_l1, rep(1, 12))
})

test_that("weights that do not fit are refused, and nothing has changed", {
  layer <- nn_gru(3, 4)
  before <- layer$parameters
  expect_error(layer$load_state_dict(before[-1]), "nn_gru: weights missing: weight_ih_l1")
  expect_error(layer$parameters <- c(before, list(w = 1)), "missing: none, unexpected: w")
  expect_error(layer$parameters <- c(before, before[2]), "nn_gru: weights given twice: weight_hh_l1")
  expect_error(
    layer$weight_ih_l1 <- matrix(0, 3, 12),
    "nn_gru: weight_ih_l1 must have the dimensions (12, 3), got (3, 12)",
    fixed = TRUE
  )
  expect_error(layer$bias_ih_l1 <- letters[1:12], "bias_ih_l1 must be numeric, got character")
  expect_error(layer$weight_ih_l0 <- matrix(0, 12, 3), "unexpected: weight_ih_l0")
  expect_identical(layer$parameters, before)
})
