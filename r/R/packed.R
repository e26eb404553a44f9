#' Pack rows of different lengths
#'
#' Lay the steps of all rows one behind the other, without what is past their ends: the first step
#' of every row, then the second of those that have one, and so on. [nn_rnn()], [nn_gru()] and
#' [nn_lstm()] take the result in place of padded input, and return one;
#' [nn_utils_rnn_pad_packed_sequence()] is the inverse.
#'
#' @param input array (L, N, D), or (N, L, D) with `batch_first`.
#' @param lengths N whole numbers from 1 to L.
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
#' @export
nn_utils_rnn_pack_padded_sequence <- function(input, lengths, batch_first = FALSE,
                                              enforce_sorted = TRUE) {
  name <- "nn_utils_rnn_pack_padded_sequence"
  input <- numbers_of(name, "input", input)
  if (length(dim(input)) != 3) {
    axes <- if (batch_first) "(N, L, D)" else "(L, N, D)"
    fail(name, "input must be an array ", axes, ", got ", shape_text(input))
  }
  if (batch_first) input <- aperm(input, c(2, 1, 3))
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
