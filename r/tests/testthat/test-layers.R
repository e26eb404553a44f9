set.seed(1)

for (kind in names(layers)) {
  for (bidirectional in c(FALSE, TRUE)) {
    for (bias in c(FALSE, TRUE)) {
      test_that(paste("values:", kind, bidirectional, bias), {
        layer <- layers[[kind]](3, 4, 2,
          bias = bias, bidirectional = bidirectional, dtype = "float64"
        )
        x <- numbers(5, 2, 3)
        K <- if (bidirectional) 4 else 2
        hx <- states(kind, K, 2, 4)
        expect_result(layer(x, hx), naive(kind, layer$parameters, x, hx))
        expect_result(layer(x), naive(kind, layer$parameters, x, zeros(kind, K, 2, 4)))
      })
    }
  }
}

test_that("batch_first turns input and output, not states", {
  layer <- nn_gru(3, 4, batch_first = TRUE, dtype = "float64")
  x <- numbers(5, 2, 3)
  h0 <- numbers(1, 2, 4)
  want <- naive("gru", layer$parameters, x, h0)
  want[[1]] <- aperm(want[[1]], c(2, 1, 3))
  expect_result(layer(aperm(x, c(2, 1, 3)), h0), want)
})

test_that("without a batch there is no axis of it", {
  for (batch_first in c(FALSE, TRUE)) {
    for (kind in names(layers)) {
      layer <- layers[[kind]](3, 4, 2, batch_first = batch_first, bidirectional = TRUE)
      x <- numbers(5, 3)
      hx <- states(kind, 4, 4)
      reset <- c(FALSE, FALSE, TRUE, FALSE, TRUE)
      rows <- function(a) array(a, c(dim(a)[1], 1, dim(a)[2]))
      steps <- if (batch_first) function(a) aperm(rows(a), c(2, 1, 3)) else rows
      each <- function(h, f) if (is.list(h)) lapply(h, f) else f(h)
      want <- layer(steps(x), each(hx, rows), 4, if (batch_first) t(reset) else cbind(reset))
      got <- layer(x, hx, 4, reset)
      expect_identical(steps(got[[1]]), want[[1]])
      expect_identical(each(got[[2]], rows), want[[2]])
    }
  }
})

test_that("float32 is the default", {
  layer <- nn_gru(3, 4)
  x <- numbers(5, 2, 3)
  h0 <- numbers(1, 2, 4)
  want <- naive("gru", layer$parameters, x, h0)
  expect_result(layer(x, h0), want, 1e-6)
  expect_false(identical(layer(x, h0), want))
})

for (kind in names(layers)) {
  test_that(paste("lengths and reset:", kind), {
    layer <- layers[[kind]](3, 4, 2, bidirectional = TRUE, dtype = "float64")
    x <- numbers(6, 4, 3)
    hx <- states(kind, 4, 4, 4)
    lengths <- c(6, 0, 2, 5)
    reset <- array(rnorm(24) > 0.5, c(6, 4))
    expect_result(layer(x, hx, lengths), naive(kind, layer$parameters, x, hx, lengths))
    expect_result(
      layer(x, hx, lengths, reset), naive(kind, layer$parameters, x, hx, lengths, reset)
    )
    expect_result(
      layer(x, hx, reset = reset), naive(kind, layer$parameters, x, hx, reset = reset)
    )
  })
}

test_that("padding is never read", {
  layer <- nn_gru(3, 4)
  x <- numbers(5, 2, 3)
  x[4:5, 2, ] <- NaN
  result <- layer(x, lengths = c(5, 3))
  expect_true(all(is.finite(result[[1]])))
  expect_true(all(result[[1]][4:5, 2, ] == 0))
})

test_that("the documented example of torch runs, with R's arrays", {
  rnn <- nn_gru(10, 20, 2)
  input <- array(rnorm(5 * 3 * 10), c(5, 3, 10))
  h0 <- array(rnorm(2 * 3 * 20), c(2, 3, 20))
  output <- rnn(input, h0)
  expect_equal(lapply(output, dim), list(c(5L, 3L, 20L), c(2L, 3L, 20L)))
})

test_that("the documented example of torch's LSTM runs, with R's arrays", {
  rnn <- nn_lstm(10, 20, 2)
  input <- array(rnorm(5 * 3 * 10), c(5, 3, 10))
  h0 <- array(rnorm(2 * 3 * 20), c(2, 3, 20))
  c0 <- array(rnorm(2 * 3 * 20), c(2, 3, 20))
  output <- rnn(input, list(h0, c0))
  expect_equal(dim(output[[1]]), c(5L, 3L, 20L))
  expect_equal(lapply(output[[2]], dim), list(c(2L, 3L, 20L), c(2L, 3L, 20L)))
})

test_that("an LSTM's states carry a sequence on", {
  layer <- nn_lstm(3, 4, 2)
  x <- numbers(5, 2, 3)
  first <- layer(x[1:2, , ])
  second <- layer(x[3:5, , ], first[[2]])
  whole <- layer(x)
  expect_identical(second[[1]], whole[[1]][3:5, , ])
  expect_identical(second[[2]], whole[[2]])
})

test_that("an empty batch gives empty results", {
  result <- nn_gru(3, 4)(array(0, c(5, 0, 3)))
  expect_equal(lapply(result, dim), list(c(5L, 0L, 4L), c(1L, 0L, 4L)))
})

test_that("dropout lies between layers, in training", {
  layer <- nn_gru(3, 4, 2, dropout = 0.5)
  x <- numbers(5, 2, 3)
  expect_true(layer$training)
  expect_false(identical(layer(x), layer(x)))
  expect_false(layer$eval()$training)
  expect_result(layer(x), naive("gru", layer$parameters, x, array(0, c(2, 2, 4))), 1e-6)
  expect_true(layer$train()$training)
  all <- nn_gru(3, 4, 2, dropout = 1)
  nothing <- all$parameters
  nothing$weight_ih_l2[] <- 0
  expect_result(all(x), naive("gru", nothing, x, array(0, c(2, 2, 4))), 1e-6)
  expect_warning(nn_gru(3, 4, dropout = 0.5), "nn_gru: dropout comes between layers")
})

test_that("dropout keeps the mean, and set.seed settles it", {
  layer <- nn_rnn(1, 50, 2, dropout = 0.3, nonlinearity = "relu", dtype = "float64")
  weights <- lapply(layer$parameters, function(w) 0 * w)
  weights$bias_ih_l1[] <- 1
  weights$weight_ih_l2 <- diag(50)
  layer$load_state_dict(weights)
  x <- array(0, c(40, 10, 1))
  set.seed(5)
  output <- layer(x)[[1]]
  expect_true(all(output == 0 | output == 1 / 0.7))
  # 20000 draws: five standard deviations of the share.
  expect_lt(abs(mean(output == 0) - 0.3), 5 * sqrt(0.3 * 0.7 / 20000))
  set.seed(5)
  expect_identical(layer(x)[[1]], output)
})

test_that("set.seed settles the initial weights", {
  weights <- lapply(c(3, 3, 4), function(seed) {
    set.seed(seed)
    nn_gru(3, 4)$parameters
  })
  expect_identical(weights[[1]], weights[[2]])
  expect_false(identical(weights[[1]], weights[[3]]))
  set.seed(9)
  first <- nn_gru(3, 4, seed = 1)
  after <- runif(1)
  expect_identical(first$parameters, nn_gru(3, 4, seed = 1)$parameters)
  set.seed(9)
  expect_identical(runif(1), after)
  expect_lte(max(abs(unlist(weights))), 1 / sqrt(4))
  expect_gt(max(abs(unlist(weights))), 0.9 / sqrt(4))
})

test_that("a layer prints as it is written", {
  expect_output(print(nn_gru(3, 4, 2)), "nn_gru(3, 4, num_layers = 2)", fixed = TRUE)
  expect_output(print(nn_rnn(3, 4)), "nn_rnn(3, 4)", fixed = TRUE)
  expect_output(
    print(nn_rnn(3, 4, nonlinearity = "relu", bias = FALSE, dtype = "float64")),
    "nn_rnn(3, 4, nonlinearity = \"relu\", bias = FALSE, dtype = \"float64\")",
    fixed = TRUE
  )
  expect_output(print(nn_lstm_cell(3, 4)), "nn_lstm_cell(3, 4)", fixed = TRUE)
})
