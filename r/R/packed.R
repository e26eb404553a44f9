#' Pack rows of different lengths
#'
#' Lay the steps of all rows one behind the other, without what is past their ends: the first step
#' of every row, then the second of those that have one, and so on. [nn_rnn()], [nn_gru()] and
#' [nn_lstm()] take the result in place of padded input, and return one;
#' [nn_utils_rnn_pad_packed_sequence()] is the inverse.
#'
#' `lengths = ` of a layer does the same on padded input, without packing.
#'
#' @param input array (L, N, D), or (N, L, D) with `batch_first`.
#' @param lengths N whole numbers from 1 to L.
#' @param sequences in place of these a list of N matrices (length, D).
#' @param batch_first whether the first axis of `input` is N.
#' @param enforce_sorted whether `lengths` must not increase. With `FALSE` they stand in any order.
#'
#' @return A packed sequence: a list of `data` (sum of lengths, D), `batch_sizes` (largest length),
#'   and `sorted_indices` and `unsorted_indices` (N), `NULL` with `enforce_sorted`.
#'
#' @examples
#' input <- array(1:12, c(3, 2, 2))
#' packed <- nn_utils_rnn_pack_padded_sequence(input, c(1, 3), enforce_sorted = FALSE)
#' packed$batch_sizes
#' nn_utils_rnn_pad_packed_sequence(packed)
#'
#' nn_utils_rnn_pack_sequence(list(matrix(1:6, 3), matrix(1:2, 1)))$data
#' @export
nn_utils_rnn_pack_padded_sequence <- function(input, lengths, batch_first = FALSE,
                                              enforce_sorted = TRUE) {
  name <- "nn_utils_rnn_pack_padded_sequence"
  check_flag(name, "batch_first", batch_first)
  input <- numbers_of(name, "input", input)
  if (length(dim(input)) != 3) {
    axes <- if (batch_first) "(N, L, D)" else "(L, N, D)"
    fail(name, "input must be an array ", axes, ", got ", shape_text(input))
  }
  pack(name, if (batch_first) aperm(input, c(2, 1, 3)) else input, lengths, enforce_sorted)
}

#' @rdname nn_utils_rnn_pack_padded_sequence
#' @export
nn_utils_rnn_pack_sequence <- function(sequences, enforce_sorted = TRUE) {
  name <- "nn_utils_rnn_pack_sequence"
  sequences <- sequences_of(name, sequences)
  pack(name, pad(sequences, 0), vapply(sequences, nrow, 0L), enforce_sorted)
}

# Of an array (L, N, D).
pack <- function(name, input, lengths, enforce_sorted) {
  check_flag(name, "enforce_sorted", enforce_sorted)
  if (dim(input)[2] == 0) fail(name, "expected at least one row, got none")
  lengths <- lengths_of(name, lengths, dim(input)[2], 1, dim(input)[1])
  if (enforce_sorted && is.unsorted(-lengths)) {
    fail(name, "lengths must not increase, got ", paste(lengths, collapse = ", "),
      "; enforce_sorted = FALSE takes them in any order"
    )
  }
  order <- order(-lengths)
  steps <- max(lengths)
  runs <- outer(lengths[order], seq_len(steps), ">=")
  rows <- aperm(input[seq_len(steps), order, , drop = FALSE], c(2, 1, 3))
  dim(rows) <- c(length(runs), dim(input)[3])
  packed <- list(data = rows[runs, , drop = FALSE], batch_sizes = colSums(runs))
  if (!enforce_sorted) {
    packed <- c(packed, list(sorted_indices = order, unsorted_indices = order(order)))
  }
  structure(packed, class = "elman_packed_sequence")
}

#' Pad rows of different lengths
#'
#' Put matrices of different numbers of steps into one array. [nn_rnn()], [nn_gru()] and [nn_lstm()]
#' take it with `lengths`, the matrices' numbers of rows.
#'
#' @param sequences a list of N matrices (steps, D).
#' @param batch_first whether to return (N, L, D) instead of (L, N, D).
#' @param padding_value what to write past the sequences' ends.
#'
#' @return An array (L, N, D), L the most steps of a sequence.
#'
#' @examples
#' sequences <- list(matrix(1:4, 2), matrix(1:6, 3))
#' input <- nn_utils_rnn_pad_sequence(sequences)
#' dim(input)
#' output <- nn_gru(2, 4)(input, lengths = sapply(sequences, nrow))
#' @export
nn_utils_rnn_pad_sequence <- function(sequences, batch_first = FALSE, padding_value = 0) {
  name <- "nn_utils_rnn_pad_sequence"
  check_flag(name, "batch_first", batch_first)
  padding_value <- array_of(name, "padding_value", padding_value, 1)
  padded <- pad(sequences_of(name, sequences), padding_value)
  if (batch_first) aperm(padded, c(2, 1, 3)) else padded
}

pad <- function(sequences, padding_value) {
  steps <- vapply(sequences, nrow, 0L)
  padded <- array(padding_value, c(max(steps), length(steps), ncol(sequences[[1]])))
  for (n in seq_along(steps)) padded[seq_len(steps[n]), n, ] <- sequences[[n]]
  padded
}

# Matrices of the same features.
sequences_of <- function(name, sequences) {
  if (!is.list(sequences) || !length(sequences) || !all(vapply(sequences, is.matrix, NA))) {
    fail(name, "sequences must be a list of matrices, got ",
      if (is.list(sequences)) paste("a list of", length(sequences)) else class(sequences)[1]
    )
  }
  features <- vapply(sequences, ncol, 0L)
  if (any(features != features[1])) {
    fail(name, "sequences must have the same number of columns, got ", names_text(features))
  }
  lapply(sequences, numbers_of, layer = name, name = "sequences")
}

#' Pad a packed sequence
#'
#' The inverse of [nn_utils_rnn_pack_padded_sequence()], in the order of its `lengths`.
#'
#' @param sequence a packed sequence.
#' @param batch_first whether to return (N, L, D) instead of (L, N, D).
#' @param padding_value what to write past the rows' ends.
#' @param total_length number of steps L to return; by default as many as the longest row has.
#'
#' @return A list of the padded array and the rows' lengths.
#'
#' @inherit nn_utils_rnn_pack_padded_sequence examples
#' @export
nn_utils_rnn_pad_packed_sequence <- function(sequence, batch_first = FALSE, padding_value = 0,
                                             total_length = NULL) {
  name <- "nn_utils_rnn_pad_packed_sequence"
  if (!inherits(sequence, "elman_packed_sequence")) {
    fail(name, "sequence must be a packed sequence, got ", class(sequence)[1])
  }
  check_flag(name, "batch_first", batch_first)
  padding_value <- array_of(name, "padding_value", padding_value, 1)
  rows <- if (is.numeric(sequence$batch_sizes)) sum(sequence$batch_sizes)
  if (!is.matrix(sequence$data) || !identical(rows, 0 + nrow(sequence$data))) {
    fail(name, "sequence's batch_sizes must add up to the rows of its data")
  }
  steps <- length(sequence$batch_sizes)
  total <- if (is.null(total_length)) steps else whole(name, "total_length", total_length)
  if (total < steps) {
    fail(name, "total_length must be at least ", steps, ", got ", total)
  }
  N <- sequence$batch_sizes[1]
  batch_sizes <- c(sequence$batch_sizes, rep(0, total - steps))
  runs <- outer(seq_len(N), batch_sizes, "<=")
  padded <- matrix(padding_value, length(runs), ncol(sequence$data))
  padded[runs, ] <- sequence$data
  dim(padded) <- c(dim(runs), ncol(sequence$data))
  lengths <- rowSums(runs)
  if (!is.null(sequence$unsorted_indices)) {
    padded <- padded[sequence$unsorted_indices, , , drop = FALSE]
    lengths <- lengths[sequence$unsorted_indices]
  }
  list(if (batch_first) padded else aperm(padded, c(2, 1, 3)), lengths)
}
