set.seed(2)

for (kind in names(cells)) {
  for (bias in c(FALSE, TRUE)) {
    test_that(paste("a step of a cell:", kind, bias), {
      cell <- cells[[kind]](3, 4, bias = bias, dtype = "float64")
      weights <- setNames(cell$parameters, paste0(names(cell$parameters), "_l1"))
      x <- numbers(2, 3)
      hx <- states(kind, 2, 4)
      add_axis <- function(h) if (is.list(h)) lapply(h, add_axis) else array(h, c(1, dim(h)))
      drop_axis <- function(h) if (is.list(h)) lapply(h, drop_axis) else array(h, dim(h)[-1])
      want <- drop_axis(naive(kind, weights, add_axis(x), add_axis(hx))[[2]])
      expect_close(cell(x, hx), want, 1e-12)
      start <- drop_axis(naive(kind, weights, add_axis(x), add_axis(zeros(kind, 2, 4)))[[2]])
      expect_close(cell(x), start, 1e-12)
      # A row alone, as vectors.
      row <- function(h, n) if (is.list(h)) lapply(h, row, n) else h[n, ]
      expect_identical(cell(x[2, ], row(hx, 2)), row(cell(x, hx), 2))
    })
  }
}

test_that("a cell's steps are a layer's", {
  layer <- nn_lstm(3, 4)
  cell <- nn_lstm_cell(3, 4)
  weights <- layer$parameters
  cell$load_state_dict(setNames(weights, sub("_l1", "", names(weights))))
  x <- numbers(5, 2, 3)
  state <- NULL
  for (t in 1:5) state <- cell(x[t, , ], state)
  result <- layer(x)
  expect_identical(state[[1]], result[[1]][5, , ])
  expect_identical(state, lapply(result[[2]], function(h) h[1, , ]))
})

test_that("weights of a cell have torch's names", {
  cell <- nn_gru_cell(3, 4)
  expect_named(cell$parameters, c("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
  expect_identical(dim(cell$weight_ih), c(12L, 3L))
  expect_length(cell$bias_hh, 12)
  expect_named(nn_rnn_cell(3, 4, bias = FALSE)$parameters, c("weight_ih", "weight_hh"))
})
