# Gradients beside finite differences, in float64.
set.seed(4)

# The gradient of f() at each of `values`, by central differences.
numeric_gradient <- function(f, values) {
  step <- 1e-6
  gradient <- values
  for (i in seq_along(values)) {
    nudged <- function(by) {
      values[i] <- values[i] + by
      f(values)
    }
    gradient[i] <- (nudged(step) - nudged(-step)) / (2 * step)
  }
  gradient
}

# The error of central differences is some step^2, and rounding over the step: 1e-16 / 1e-6.
expect_gradient <- function(got, f, values, info) {
  want <- numeric_gradient(f, values)
  expect_identical(dim(got), dim(want), info = info)
  expect_lte(max(abs(got - want)), 1e-8 * max(1, abs(want)), label = info)
}

total <- function(result, d) sum(mapply(function(r, g) sum(r * g), unlist(result), unlist(d)))

# All gradients of a module, called with `...` besides input and hx; run() gives list(output, hx), of
# a cell list(hx), and `d` the gradients of these.
check_gradients <- function(module, input, hx, d, gradients, run) {
  loss <- function(input, hx) total(run(input, hx), d)
  expect_gradient(gradients$input, function(x) loss(x, hx), input, "input")
  if (is.list(hx)) {
    expect_gradient(gradients$hx[[1]], function(h) loss(input, list(h, hx[[2]])), hx[[1]], "h")
    expect_gradient(gradients$hx[[2]], function(c) loss(input, list(hx[[1]], c)), hx[[2]], "c")
  } else {
    expect_gradient(gradients$hx, function(h) loss(input, h), hx, "hx")
  }
  weights <- module$parameters
  expect_named(gradients, c("input", "hx", names(weights)))
  for (name in names(weights)) {
    with_weight <- function(w) {
      module$load_state_dict(replace(weights, name, list(w)))
      loss(input, hx)
    }
    expect_gradient(gradients[[name]], with_weight, weights[[name]], name)
    module$load_state_dict(weights)
  }
}

for (kind in names(layers)) {
  for (first in c(FALSE, TRUE)) {
    test_that(paste("layers, with lengths and reset:", kind, first), {
      layer <- layers[[kind]](2, 3, 2, batch_first = first, bidirectional = TRUE, dtype = "float64")
      input <- numbers(4, 3, 2)
      reset <- array(c(FALSE, FALSE, TRUE), c(4, 3))
      d_output <- numbers(4, 3, if (kind == "projected") 4 else 6)
      if (first) {
        input <- aperm(input, c(2, 1, 3))
        reset <- t(reset)
        d_output <- aperm(d_output, c(2, 1, 3))
      }
      lengths <- c(4, 0, 3)
      hx <- states(kind, 4, 3, 3)
      d_hx <- states(kind, 4, 3, 3)
      there <- layer$vjp(input, hx, lengths, reset)
      run <- function(input, hx) layer(input, hx, lengths, reset)
      expect_identical(list(there$output, there$hx), run(input, hx))
      gradients <- there$vjp(d_output, d_hx)
      check_gradients(layer, input, hx, list(d_output, d_hx), gradients, run)
      # As often as one likes, with the weights of then.
      layer$load_state_dict(lapply(layer$parameters, `*`, 2))
      expect_identical(there$vjp(d_output, d_hx), gradients)
    })
  }

  test_that(paste("layers without bias, and dropout:", kind), {
    layer <- layers[[kind]](2, 3, 3, bias = FALSE, dropout = 0.4, dtype = "float64")
    input <- numbers(4, 3, 2)
    hx <- states(kind, 3, 3, 3)
    d <- list(numbers(4, 3, if (kind == "projected") 2 else 3), states(kind, 3, 3, 3))
    run <- function(input, hx) {
      set.seed(7)
      layer(input, hx)
    }
    set.seed(7)
    there <- layer$vjp(input, hx)
    check_gradients(layer, input, hx, d, there$vjp(d[[1]], d[[2]]), run)
  })

  test_that(paste("layers without a batch:", kind), {
    layer <- layers[[kind]](2, 3, 2, batch_first = TRUE, bidirectional = TRUE, dtype = "float64")
    input <- numbers(4, 2)
    reset <- c(FALSE, TRUE, FALSE, FALSE)
    hx <- states(kind, 4, 3)
    run <- function(input, hx) layer(input, hx, 3, reset)
    there <- layer$vjp(input, hx, 3, reset)
    expect_identical(list(there$output, there$hx), run(input, hx))
    d <- list(array(rnorm(length(there$output)), dim(there$output)), states(kind, 4, 3))
    check_gradients(layer, input, hx, d, there$vjp(d[[1]], d[[2]]), run)
  })

  test_that(paste("gates that are computed again, in any bit:", kind), {
    layer <- layers[[kind]](5, 17, 2, bidirectional = TRUE, seed = 1)
    again <- layers[[kind]](5, 17, 2, bidirectional = TRUE, seed = 1, recompute = TRUE)
    input <- numbers(30, 4, 5)
    arguments <- list(input, states(kind, 4, 4, 17), c(30, 0, 7, 21), numbers(30, 4) > 1)
    ways <- lapply(list(layer, again), function(l) do.call(l$vjp, arguments))
    expect_identical(ways[[2]][1:2], ways[[1]][1:2])
    d <- array(rnorm(length(ways[[1]]$output)), dim(ways[[1]]$output))
    expect_identical(ways[[2]]$vjp(d), ways[[1]]$vjp(d))
    kept <- function(way) length(serialize(way$vjp, NULL))
    if (kind %in% c("tanh", "relu")) {
      expect_equal(kept(ways[[2]]), kept(ways[[1]]), tolerance = 1e-3)
    } else {
      expect_lt(kept(ways[[2]]), 0.8 * kept(ways[[1]]))
    }
  })

  if (kind %in% names(cells)) test_that(paste("cells:", kind), {
    cell <- cells[[kind]](2, 3, dtype = "float64")
    for (N in list(NULL, 4)) {
      input <- if (is.null(N)) rnorm(2) else numbers(N, 2)
      one <- function() if (is.null(N)) rnorm(3) else numbers(N, 3)
      hx <- if (kind == "lstm") list(one(), one()) else one()
      d <- if (kind == "lstm") list(one(), one()) else one()
      there <- cell$vjp(input, hx)
      expect_identical(there$hx, cell(input, hx))
      run <- function(input, hx) list(cell(input, hx))
      check_gradients(cell, input, hx, list(d), there$vjp(d), run)
    }
  })
}

test_that("what is not given is zero", {
  layer <- nn_lstm(2, 3, dtype = "float64")
  input <- numbers(4, 3, 2)
  zero <- array(0, c(1, 3, 3))
  nothing <- array(0, c(4, 3, 3))
  d <- numbers(1, 3, 3)
  there <- layer$vjp(input)
  expect_identical(there$vjp(NULL, list(NULL, d)), there$vjp(nothing, list(zero, d)))
  expect_identical(there$vjp(NULL, list(d, NULL)), there$vjp(nothing, list(d, zero)))
  expect_identical(there$vjp(nothing), there$vjp(NULL, list(zero, zero)))
  expect_true(all(unlist(there$vjp()) == 0))
  expect_identical(layer$vjp(input, list(zero, zero))$vjp(nothing + 1), there$vjp(nothing + 1))
})

test_that("padding is not read, and has no gradient", {
  layer <- nn_gru(2, 3, 2, bidirectional = TRUE)
  input <- numbers(5, 2, 2)
  input[4:5, 2, ] <- NaN
  gradients <- layer$vjp(input, lengths = c(5, 3))$vjp(array(1, c(5, 2, 6)))
  expect_true(all(is.finite(unlist(gradients))))
  expect_true(all(gradients$input[4:5, 2, ] == 0))
  expect_true(all(gradients$input[1:3, 2, ] != 0))
})

test_that("an empty batch has gradients of zero", {
  gradients <- nn_gru(2, 3)$vjp(array(0, c(5, 0, 2)))$vjp(array(0, c(5, 0, 3)))
  expect_identical(dim(gradients$input), c(5L, 0L, 2L))
  expect_true(all(unlist(gradients[-(1:2)]) == 0))
})
