#' Elman's recurrent layers for R
#'
#' [nn_rnn()], [nn_gru()] and [nn_lstm()] take the arguments of the functions of these names in
#' torch for R, hold the same weights under the same names, and give the same results, on R's own
#' arrays. [nn_rnn_cell()], [nn_gru_cell()] and [nn_lstm_cell()] are single steps of them. All give
#' gradients, for an optimiser written in R: see `vignette("training", "elman")`.
#'
#' @section The same answer:
#'
#' What a layer gives for a sequence, and every gradient, does not depend on the other sequences of
#' the batch, on padding, on the number of threads or on the processor, in any bit. The packages of
#' Elman for Python, whose engine this is, give the same bits.
#'
#' @keywords internal
#' @importFrom stats coef predict runif setNames
#' @importFrom utils file_test modifyList
#' @useDynLib elman, .registration = TRUE, .fixes = "C_"
"_PACKAGE"
