#' Japanese Vowels
#'
#' Nine men say the vowels /ae/ one after the other: 640 utterances, each a sequence of 7 to 29
#' frames of 12 linear-prediction cepstrum coefficients. Who is speaking?
#'
#' @format A list of
#' * `frames`: an array (29, 640, 12) of steps, utterances and coefficients, 0 past each utterance's
#'   end;
#' * `lengths`: how many frames each utterance has;
#' * `speaker`: a factor of who speaks, 1 to 9;
#' * `test`: a logical vector, `FALSE` for the 270 utterances to train on.
#'
#' @source M. Kudo, J. Toyama and M. Shimbo, UCI Machine Learning Repository, \doi{10.24432/C5NS47},
#'   licensed under Creative Commons Attribution 4.0 International,
#'   <https://creativecommons.org/licenses/by/4.0/>. Changed here: the text files were put into one
#'   array, rounded to single precision.
#'
#' @references M. Kudo, J. Toyama and M. Shimbo (1999), Multidimensional Curve Classification Using
#'   Passing-Through Regions, Pattern Recognition Letters 20, 1103-1111.
#'   \doi{10.1016/S0167-8655(99)00077-X}
#'
#' @examples
#' layer <- nn_gru(12, 32)
#' output <- layer(japanese_vowels$frames, lengths = japanese_vowels$lengths)
#' dim(output[[1]])
"japanese_vowels"
