set.seed(6)

every_module <- function() {
  list(
    nn_gru(3, 4, 2, bidirectional = TRUE), nn_lstm(3, 4, dtype = "float64"),
    nn_rnn(3, 4, nonlinearity = "relu"), nn_gru_cell(3, 4),
    nn_lstm(3, 4, proj_size = 2), nn_gru(3, 4, reset_after = FALSE, recompute = TRUE)
  )
}

input_of <- function(module) {
  if (grepl("cell", format_of(module))) numbers(2, 3) else numbers(5, 2, 3)
}

format_of <- function(module) capture.output(print(module))

test_that("a module that was saved and read is the same, in this R and in a new one", {
  path <- tempfile()
  on.exit(unlink(path))
  for (module in every_module()) {
    x <- input_of(module)
    result <- module(x)
    saveRDS(list(module = module, x = x, result = result), path)
    module$load_state_dict(lapply(module$parameters, `*`, 0))
    again <- readRDS(path)
    expect_identical(again$module(x), result)
    script <- sprintf("
      saved <- readRDS(%s)
      stopifnot(identical(saved$module(saved$x), saved$result))
      saved$module$load_state_dict(lapply(saved$module$parameters, `*`, 0))
      stopifnot(!identical(saved$module(saved$x), saved$result))
      gradients <- saved$module$vjp(saved$x)
      print(saved$module)", deparse1(path))
    expect_identical(in_another_process(script), format_of(module))
  }
})

test_that("the way back survives being saved", {
  path <- tempfile()
  on.exit(unlink(path))
  there <- nn_lstm(3, 4, 2)$vjp(numbers(5, 2, 3))
  d <- numbers(5, 2, 4)
  saveRDS(there, path)
  expect_identical(readRDS(path)$vjp(d), there$vjp(d))
})

test_that("a layer's own attributes can be read, as torch's", {
  layer <- nn_rnn(3, 4, 2, "relu", batch_first = TRUE, dropout = 0.5)
  expect_equal(
    list(layer$input_size, layer$hidden_size, layer$num_layers, layer$nonlinearity, layer$bias),
    list(3, 4, 2, "relu", TRUE)
  )
  expect_equal(list(layer$batch_first, layer$dropout, layer$bidirectional), list(TRUE, 0.5, FALSE))
  expect_identical(layer$dtype, "float32")
  expect_null(nn_gru(3, 4)$nonlinearity)
  expect_null(nn_gru_cell(3, 4)$num_layers)
})

test_that("summary counts the weights", {
  s <- summary(nn_gru(3, 4, 2))
  expect_identical(s$layer, "nn_gru(3, 4, num_layers = 2)")
  expect_identical(s$weights$name, names(nn_gru(3, 4, 2)$parameters))
  expect_identical(s$weights$shape[1:3], c("(12, 3)", "(12, 4)", "(12)"))
  expect_equal(s$weights$values, lengths(nn_gru(3, 4, 2)$parameters), ignore_attr = TRUE)
  expect_output(print(s), "weight_ih_l2 (12, 4) 48", fixed = TRUE)
  expect_output(print(s), "228 values")
})

test_that("coef gives the weights", {
  for (module in every_module()) expect_identical(coef(module), module$parameters)
})

test_that("predict gives the output, without dropout", {
  layer <- nn_gru(3, 4, 2, dropout = 0.5)
  x <- numbers(5, 2, 3)
  hx <- numbers(2, 2, 4)
  in_training <- predict(layer, x, hx, lengths = c(5, 2))
  expect_true(layer$training)
  expect_identical(in_training, layer$eval()(x, hx, c(5, 2))[[1]])
  cell <- nn_lstm_cell(3, 4)
  expect_identical(predict(cell, x[1, , ]), cell(x[1, , ])[[1]])
  gru <- nn_gru_cell(3, 4)
  expect_identical(predict(gru, x[1, , ]), gru(x[1, , ]))
})
