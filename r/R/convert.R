#' Weights from and to other frameworks
#'
#' Turns the weights of one layer of one framework into those of another.
#'
#' @section Frameworks:
#'
#' * `"r-torch"`: torch for R and this package. A named list, as `layer$state_dict()` gives it:
#'   layers are counted from 1. Of torch's own layer that is `lapply(torchs$state_dict(),
#'   as.array)`.
#' * `"torch"`: PyTorch, OneFlow, and the files of Elman for Python: the same, counted from 0.
#' * `"keras"`: a list without names, as `keras::get_weights(layer)` gives it and
#'   `keras::set_weights(layer, weights)` takes it, of a GRU, an LSTM or a SimpleRNN or of a
#'   Bidirectional one: `kernel` (D, G * H), `recurrent_kernel` (H, G * H) and `bias`, of each
#'   direction. The gates of a GRU stand in the order z, r, h.
#'
#' A cell's weights, without the number of a layer, become Keras's too. Those of Keras become a
#' layer's; a cell's have the same names without `_l1`.
#'
#' Values are moved, not computed, but for one thing: Keras has one bias for an LSTM or a SimpleRNN,
#' to which the two here are added up. Coming from there it is `bias_ih`, and `bias_hh` is 0.
#'
#' It is an error to turn more than one layer into Keras's, which has a layer for each.
#'
#' @param weights the layer's weights: a list of arrays.
#' @param source,target `"r-torch"`, `"torch"` or `"keras"`.
#' @param reset_after that of the GRU, which both sides must have: with `FALSE` it computes
#'   \eqn{W_{hn} (r * h)}{W_hn (r * h)}, another function, of [nn_gru()] and Keras, but not of
#'   torch. Keras has one bias for it, as for an LSTM. Without biases weights do not tell which it
#'   is.
#'
#' @return A list of arrays, as `target` has it.
#'
#' @examples
#' layer <- nn_gru(10, 20)
#' keras <- convert_weights(layer$state_dict(), "r-torch", "keras")
#' lapply(keras, dim)
#' back <- convert_weights(keras, "keras", "r-torch")
#' layer$load_state_dict(back)
#'
#' names(convert_weights(layer$state_dict(), "r-torch", "torch"))
#' @export
convert_weights <- function(weights, source, target, reset_after = TRUE) {
  check_flag("convert_weights", "reset_after", reset_after)
  check_framework("source", source)
  check_framework("target", target)
  if (!is.list(weights) || !all(vapply(weights, is.numeric, NA))) {
    fail("convert_weights", "weights must be a list of numeric arrays, got ", class(weights)[1])
  }
  weights <- switch(source,
    "r-torch" = weights,
    torch = count_layers(weights, 1),
    keras = from_keras(weights, reset_after)
  )
  switch(target,
    "r-torch" = weights,
    torch = count_layers(weights, -1),
    keras = to_keras(weights, reset_after)
  )
}

check_framework <- function(name, framework) {
  known <- c("r-torch", "torch", "keras")
  if (!is.character(framework) || length(framework) != 1 || !framework %in% known) {
    fail("convert_weights", name, " must be r-torch, torch or keras, got ", deparse1(framework))
  }
}

# A cell's weights have no number.
count_layers <- function(weights, by) {
  numbered <- grepl("_l[0-9]+", names(weights))
  one <- function(name) {
    layer <- as.integer(sub(".*_l([0-9]+).*", "\\1", name))
    sub("_l[0-9]+", paste0("_l", layer + by), name)
  }
  names(weights)[numbered] <- vapply(names(weights)[numbered], one, "")
  weights
}

# --- Keras ---------------------------------------------------------------------------------------

from_keras <- function(weights, reset_after) {
  if (!length(weights) %in% c(2, 3, 4, 6)) {
    fail("convert_weights", "keras: expected a kernel, a recurrent kernel and perhaps a bias of ",
      "one direction or two, got ", length(weights), " arrays"
    )
  }
  directions <- if (length(weights) > 3) 2 else 1
  parts <- split(unname(weights), rep(seq_len(directions), each = length(weights) / directions))
  suffixes <- paste0("_l1", c("", "_reverse"))[seq_len(directions)]
  one <- function(part, suffix) {
    part <- one_from_keras(part, reset_after)
    names(part) <- paste0(names(part), suffix)
    part
  }
  do.call(c, unname(Map(one, parts, suffixes)))
}

one_from_keras <- function(part, reset_after) {
  kernel <- part[[1]]
  recurrent <- part[[2]]
  gates <- if (length(dim(recurrent)) == 2) ncol(recurrent) / nrow(recurrent) else 0
  if (length(dim(kernel)) != 2 || !gates %in% c(1, 3, 4) || ncol(kernel) != ncol(recurrent)) {
    fail("convert_weights", "keras: expected a kernel (D, G * H) and a recurrent kernel ",
      "(H, G * H) with G = 1, 3 or 4, got ", shape_text(kernel), " and ", shape_text(recurrent)
    )
  }
  order <- keras_gates(gates, nrow(recurrent))
  weights <- list(
    weight_ih = t(kernel[, order, drop = FALSE]), weight_hh = t(recurrent[, order, drop = FALSE])
  )
  if (length(part) == 2) return(weights)
  c(weights, biases_from_keras(part[[3]], gates, order, reset_after))
}

biases_from_keras <- function(bias, gates, order, reset_after) {
  rows <- length(order)
  if (gates == 3 && (length(bias) == rows) == reset_after) {
    fail("convert_weights", "keras: this GRU has reset_after = ", !reset_after,
      ", another function, which no weights turn into the one that was asked for"
    )
  }
  expected <- if (has_two_biases(gates, reset_after)) c(2, rows) else rows
  if (!identical(as.numeric(shape(bias)), as.numeric(expected))) {
    fail("convert_weights", "keras: expected a bias (", paste(expected, collapse = ", "), "), got ",
      shape_text(bias)
    )
  }
  if (has_two_biases(gates, reset_after)) {
    list(bias_ih = bias[1, order], bias_hh = bias[2, order])
  } else {
    list(bias_ih = bias[order], bias_hh = numeric(rows))
  }
}

has_two_biases <- function(gates, reset_after) gates == 3 && reset_after

to_keras <- function(weights, reset_after) {
  above <- grep("_l([2-9]|1[0-9])", names(weights), value = TRUE)
  if (length(above)) {
    fail("convert_weights", "keras: a layer of Keras's is one layer, got ", above[1])
  }
  names(weights) <- sub("_l1", "", names(weights), fixed = TRUE)
  reverse <- grepl("_reverse$", names(weights))
  names(weights) <- sub("_reverse$", "", names(weights))
  parts <- if (any(reverse)) list(weights[!reverse], weights[reverse]) else list(weights)
  do.call(c, lapply(parts, one_to_keras, reset_after))
}

one_to_keras <- function(part, reset_after) {
  known <- c("weight_ih", "weight_hh", "bias_ih", "bias_hh")
  if (!setequal(names(part), known) && !setequal(names(part), known[1:2])) {
    fail("convert_weights", "expected ", names_text(known), ", got ", names_text(names(part)))
  }
  gates <- nrow(part$weight_hh) / ncol(part$weight_hh)
  order <- keras_gates(gates, ncol(part$weight_hh))
  weights <- list(
    t(part$weight_ih[order, , drop = FALSE]), t(part$weight_hh[order, , drop = FALSE])
  )
  if (is.null(part$bias_ih)) return(weights)
  biases <- rbind(part$bias_ih[order], part$bias_hh[order])
  c(weights, list(if (has_two_biases(gates, reset_after)) biases else colSums(biases)))
}

# Keras's rows in the order of torch's, and the other way round: z and r of a GRU change places.
keras_gates <- function(gates, H) {
  if (gates == 3) c(H + 1:H, 1:H, 2 * H + 1:H) else seq_len(gates * H)
}
