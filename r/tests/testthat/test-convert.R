# Keras's own layers, recorded in the repository that this package comes from.

# As keras::get_weights() gives them.
keras_weights <- function(case) {
  weights <- case[grepl("^weight\\.", names(case))]
  parts <- c("kernel", "recurrent_kernel", "bias")
  each <- function(prefix) {
    found <- lapply(paste0("^weight\\.", prefix, ".*/", parts, "$"), grep, names(weights))
    unname(weights[unlist(found)])
  }
  if (any(grepl("backward", names(weights)))) c(each("forward"), each("backward")) else each("")
}

test_that("Keras's layers come out with their weights, which come back", {
  builds <- list(gru = nn_gru, lstm = nn_lstm, simplernn = nn_rnn)
  all <- cases("keras", "npz$")
  for (file in names(all)) {
    case <- all[[file]]
    keras <- keras_weights(case)
    expect_true(length(keras) %in% c(2, 3, 6))
    bidirectional <- length(keras) == 6
    arguments <- list(
      10, 20,
      bias = length(keras) > 2, batch_first = TRUE, bidirectional = bidirectional
    )
    if (grepl("relu", file)) arguments$nonlinearity <- "relu"
    after <- !grepl("before", file)
    if (!after) arguments$reset_after <- FALSE
    layer <- do.call(builds[[sub("_.*", "", sub("^bi_", "", file))]], arguments)
    layer$load_state_dict(convert_weights(keras, "keras", "r-torch", reset_after = after))
    with_layers <- function(h) if (is.null(h) || bidirectional) h else array(h, c(1, dim(h)))
    hx <- with_layers(case$h_0)
    if (!is.null(case$c_0)) hx <- list(hx, with_layers(case$c_0))
    result <- layer(case$input, hx)
    expect_close(result[[1]], case$output, 1e-5)
    final <- if (is.list(result[[2]])) result[[2]][[1]] else result[[2]]
    expect_close(final, with_layers(case$h_n), 1e-5)
    expect_identical(convert_weights(layer$state_dict(), "r-torch", "keras", after), keras)
  }
  expect_gte(length(all), 9)
})

test_that("a GRU is not taken for the other one", {
  before <- keras_weights(cases("keras", "gru_before_h0")[[1]])
  expect_error(convert_weights(before, "keras", "r-torch"), "this GRU has reset_after = FALSE")
  after <- keras_weights(cases("keras", "gru_after_h0")[[1]])
  expect_error(convert_weights(after, "keras", "r-torch", FALSE), "this GRU has reset_after = TRUE")
})

test_that("two biases are added up for Keras", {
  weights <- nn_lstm(3, 4)$parameters
  keras <- convert_weights(weights, "r-torch", "keras")
  expect_identical(keras[[3]], weights$bias_ih_l1 + weights$bias_hh_l1)
  back <- convert_weights(keras, "keras", "r-torch")
  expect_identical(back$bias_ih_l1, keras[[3]])
  expect_true(all(back$bias_hh_l1 == 0))
})

test_that("gates of a GRU change places, by hand", {
  weights <- list(weight_ih = matrix(c(1, 2, 3)), weight_hh = matrix(c(4, 5, 6)))
  keras <- list(matrix(c(2, 1, 3), 1), matrix(c(5, 4, 6), 1))
  expect_identical(convert_weights(weights, "r-torch", "keras"), keras)
  back <- convert_weights(keras, "keras", "r-torch")
  expect_identical(back, setNames(weights, c("weight_ih_l1", "weight_hh_l1")))
})

test_that("one feature or one unit is a matrix, too", {
  for (build in list(nn_gru, nn_lstm, nn_rnn)) {
    for (sizes in list(c(1, 1), c(1, 2), c(2, 1))) {
      weights <- build(sizes[1], sizes[2])$parameters
      weights[grep("bias_hh", names(weights))][[1]][] <- 0
      keras <- convert_weights(weights, "r-torch", "keras")
      expect_identical(dim(keras[[1]]), rev(dim(weights[[1]])))
      expect_identical(dim(keras[[2]]), rev(dim(weights[[2]])))
      expect_identical(convert_weights(keras, "keras", "r-torch"), weights)
    }
  }
})

test_that("PyTorch counts from 0", {
  weights <- nn_gru(1, 1, 11, bidirectional = TRUE)$parameters
  torch <- convert_weights(weights, "r-torch", "torch")
  expect_identical(names(torch)[c(1, 5, 9, 88)], c(
    "weight_ih_l0", "weight_ih_l0_reverse", "weight_ih_l1", "bias_hh_l10_reverse"
  ))
  expect_identical(convert_weights(torch, "torch", "r-torch"), weights)
  cell <- nn_gru_cell(1, 1)$parameters
  expect_identical(convert_weights(cell, "r-torch", "torch"), cell)
})

test_that("torch's tensors are taken as they are", {
  registerS3method("as.array", "torch_tensor", function(x, ...) {
    array(unclass(x)$values, unclass(x)$shape)
  })
  tensor <- function(w) {
    shape <- if (is.null(dim(w))) length(w) else dim(w)
    structure(list(values = as.vector(w), shape = shape), class = "torch_tensor")
  }
  weights <- nn_lstm(3, 4)$parameters
  layer <- nn_lstm(3, 4)
  layer$load_state_dict(lapply(weights, tensor))
  expect_identical(layer$parameters, weights)
})

test_that("what cannot be turned is refused", {
  refused <- function(weights, source, target, message) {
    expect_error(convert_weights(weights, source, target), message, fixed = TRUE)
  }
  gru <- nn_gru(3, 4)$parameters
  refused(gru, "keras2", "torch", 'source must be r-torch, torch or keras, got "keras2"')
  refused(gru, "torch", 1, "target must be r-torch, torch or keras, got 1")
  refused("a", "torch", "keras", "weights must be a list of numeric arrays, got character")
  refused(list(a = "b"), "torch", "keras", "weights must be a list of numeric arrays, got list")
  refused(nn_gru(3, 4, 2)$parameters, "r-torch", "keras", "keras: a layer of Keras's is one layer")
  refused(gru[-1], "r-torch", "keras", "expected weight_ih, weight_hh, bias_ih, bias_hh, got")
  expect_error(convert_weights(gru, "torch", "keras", NA), "reset_after must be TRUE or FALSE")
  projected <- nn_lstm(3, 4, proj_size = 2)$parameters
  refused(projected, "r-torch", "keras", "got weight_ih, weight_hh, bias_ih, bias_hh, weight_hr")
  refused(list(1), "keras", "torch", "or two, got 1 arrays")
  refused(list(matrix(0, 3, 8), matrix(0, 4, 8)), "keras", "torch", "got (3, 8) and (4, 8)")
  refused(list(1, 2), "keras", "torch", "got (1) and (1)")
  kernels <- list(matrix(0, 3, 16), matrix(0, 4, 16))
  refused(c(kernels, list(1)), "keras", "torch", "expected a bias (16), got (1)")
})
