pack <- nn_utils_rnn_pack_padded_sequence
pad <- nn_utils_rnn_pad_packed_sequence

test_that("packing lays steps one behind the other", {
  x <- array(1:12, c(3, 2, 2))
  packed <- pack(x, c(3, 1))
  expect_equal(packed$data, rbind(x[1, 1, ], x[1, 2, ], x[2, 1, ], x[3, 1, ]))
  expect_equal(packed$batch_sizes, c(2, 1, 1))
  expect_null(packed$sorted_indices)
  unsorted <- pack(x[, 2:1, ], c(1, 3), enforce_sorted = FALSE)
  expect_equal(unsorted$data, packed$data)
  expect_equal(unsorted$sorted_indices, c(2, 1))
  expect_equal(unsorted$unsorted_indices, c(2, 1))
})

test_that("padding is the inverse of packing", {
  x <- array(rnorm(6 * 4 * 3), c(6, 4, 3))
  lengths <- c(2, 5, 1, 5)
  for (n in 1:4) x[seq_len(6) > lengths[n], n, ] <- 0
  packed <- pack(x, lengths, enforce_sorted = FALSE)
  expect_equal(pad(packed), list(x[1:5, , ], lengths))
  expect_equal(pad(packed, total_length = 6), list(x, lengths))
  turned <- aperm(x, c(2, 1, 3))
  expect_equal(pack(turned, lengths, batch_first = TRUE, enforce_sorted = FALSE), packed)
  expect_equal(pad(packed, batch_first = TRUE, total_length = 6), list(turned, lengths))
  expect_equal(pad(packed, padding_value = 7)[[1]][5, 1, ], rep(7, 3))
  one <- pack(x[, 2, , drop = FALSE], 5)
  expect_equal(pad(one), list(x[1:5, 2, , drop = FALSE], 5))
})

for (kind in c("gru", "lstm")) {
  for (batch_first in c(FALSE, TRUE)) {
    test_that(paste("a layer takes and gives packed sequences:", kind, batch_first), {
      layer <- layers[[kind]](3, 4, 2,
        batch_first = batch_first, bidirectional = TRUE, dtype = "float64"
      )
      x <- array(rnorm(6 * 4 * 3), c(6, 4, 3))
      hx <- states(kind, 4, 4, 4)
      for (lengths in list(c(2, 5, 1, 5), c(6, 4, 4, 1))) {
        want <- naive(kind, layer$parameters, x, hx, lengths)
        sorted <- lengths[1] == 6
        packed <- pack(if (batch_first) aperm(x, c(2, 1, 3)) else x, lengths, batch_first, sorted)
        result <- layer(packed, hx)
        expect_s3_class(result[[1]], "elman_packed_sequence")
        expect_identical(result[[1]]$sorted_indices, packed$sorted_indices)
        expect_identical(result[[1]]$batch_sizes, packed$batch_sizes)
        padded <- pad(result[[1]], total_length = 6)
        expect_equal(padded[[2]], lengths)
        expect_result(list(padded[[1]], result[[2]]), want)
      }
    })
  }
}

test_that("sequences are padded and packed", {
  sequences <- list(matrix(1:4, 2), matrix(5:10, 3), matrix(11:12, 1))
  padded <- array(0, c(3, 3, 2))
  padded[1:2, 1, ] <- sequences[[1]]
  padded[, 2, ] <- sequences[[2]]
  padded[1, 3, ] <- sequences[[3]]
  expect_identical(nn_utils_rnn_pad_sequence(sequences), padded)
  turned <- nn_utils_rnn_pad_sequence(sequences, batch_first = TRUE, padding_value = 7)
  expect_identical(dim(turned), c(3L, 3L, 2L))
  expect_identical(turned[3, , ], rbind(c(11, 12), 7, 7))
  packed <- nn_utils_rnn_pack_sequence(sequences, enforce_sorted = FALSE)
  expect_identical(packed, pack(padded, c(2, 3, 1), enforce_sorted = FALSE))
  expect_identical(nn_utils_rnn_pack_sequence(sequences[c(2, 1)])$batch_sizes, c(2, 2, 1))
})

test_that("bad packing is refused", {
  x <- array(0, c(3, 2, 1))
  expect_error(pack(x, c(1, 3)), "lengths must not increase, got 1, 3; enforce_sorted = FALSE")
  expect_error(pack(x, c(3, 0)), "lengths must be whole numbers from 1 to 3, got 0 for row 2")
  expect_error(pack(x, c(4, 1)), "got 4 for row 1")
  expect_error(pack(x, 3), "lengths must be 2 numbers, one a row, got 1 of class numeric")
  expect_error(pack(x[, , 1], c(3, 1)), "input must be an array (L, N, D), got (3, 2)", fixed = TRUE)
  expect_error(pad(x), "sequence must be a packed sequence, got array")
  expect_error(pack(x[, 0, , drop = FALSE], 1[0]), "expected at least one row, got none")
  expect_error(pack(x, c(3, 1), NA), "pack_padded_sequence: batch_first must be TRUE or FALSE")
  expect_error(pack(x, c(3, 1), enforce_sorted = 1), "enforce_sorted must be TRUE or FALSE, got 1")
  expect_error(pad(pack(x, c(3, 1)), NA), "pad_packed_sequence: batch_first must be TRUE or FALSE")
  expect_error(pad(pack(x, c(3, 1)), padding_value = "a"), "padding_value must be numeric")
  expect_error(pad(modifyList(pack(x, c(3, 1)), list(batch_sizes = 9))), "must add up to the rows")
  expect_error(nn_utils_rnn_pack_sequence(x), "sequences must be a list of matrices, got array")
  expect_error(nn_utils_rnn_pack_sequence(list()), "must be a list of matrices, got a list of 0")
  expect_error(nn_utils_rnn_pad_sequence(list(1:3)), "sequences must be a list of matrices")
  expect_error(nn_utils_rnn_pad_sequence(list(diag(2), diag(3))), "number of columns, got 2, 3")
  expect_error(nn_utils_rnn_pad_sequence(list(matrix("a"))), "must be numeric, got character")
  expect_error(
    nn_utils_rnn_pack_sequence(list(matrix(0, 1, 2), matrix(0, 2, 2))),
    "nn_utils_rnn_pack_sequence: lengths must not increase, got 1, 2"
  )
  expect_error(pad(pack(x, c(3, 1)), total_length = 2), "total_length must be at least 3, got 2")
  expect_error(
    nn_gru(1, 2)(pack(x, c(3, 1)), lengths = c(3, 1)),
    "nn_gru: lengths and reset go with padded input, got a packed sequence"
  )
})
