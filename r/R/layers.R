#' Gated recurrent unit
#'
#' One or more layers, in one or two directions. Each step of a layer computes
#'
#' \deqn{r = \sigma(W_{ir} x + b_{ir} + W_{hr} h + b_{hr})}{r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)}
#' \deqn{z = \sigma(W_{iz} x + b_{iz} + W_{hz} h + b_{hz})}{z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)}
#' \deqn{n = \tanh(W_{in} x + b_{in} + r * (W_{hn} h + b_{hn}))}{n = tanh(W_in x + b_in + r * (W_hn h + b_hn))}
#' \deqn{h' = (1 - z) * n + z * h}{h' = (1 - z) * n + z * h}
#'
#' from the input x and the state h before, which is zero at first unless `hx` is given.
#' \eqn{\sigma}{sigmoid} is the logistic function, [stats::plogis()], and `*` multiplies value by
#' value. With `reset_after = FALSE` the reset gate comes before the recurrent product:
#'
#' \deqn{n = \tanh(W_{in} x + b_{in} + W_{hn} (r * h) + b_{hn})}{n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)}
#'
#' @section The layer:
#'
#' The value is a function of `input`, `hx = NULL`, `lengths = NULL` and `reset = NULL`. It returns
#' `list(output, h_n)`, and that of [nn_lstm()] `list(output, list(h_n, c_n))`. With L steps, N rows
#' of the batch, D = `input_size`, H = `hidden_size`, P = H, or the `proj_size` of [nn_lstm()] if
#' there is one, and K = `num_layers` times the number of directions:
#'
#' * `input` is an array (L, N, D), or (N, L, D) with `batch_first`; or one row alone, a matrix
#'   (L, D), and then nothing here has an axis of N; or a packed sequence of
#'   [nn_utils_rnn_pack_padded_sequence()]. L is at least 1; N may be 0. `NA` is NaN, which reaches
#'   no other row.
#' * `hx` is an array (K, N, H), or for [nn_lstm()] `list(h_0, c_0)`, arrays (K, N, P) and (K, N,
#'   H); zeros by default. Layer k's directions stand side by side.
#' * `lengths` holds N whole numbers from 0 to L; L for every row by default. Steps past a row's
#'   length are not computed: `input` is not read there, `output` is 0 there, and `h_n`, and `c_n`,
#'   is the state after the row's last step, or `hx` if it has none. The reverse direction starts at
#'   each row's last step.
#' * `reset` is a logical array shaped as the first two axes of `input`; `FALSE` by default. `TRUE`
#'   at a step: a new episode starts there, and nothing crosses from the step before in either
#'   direction.
#' * `output` is an array (L, N, directions * P), laid out as `input`, or a packed sequence if
#'   `input` is one: the last layer's h at every step.
#' * `h_n`, and `c_n`, is an array shaped as `h_0`, and `c_0`: the final states.
#'
#' Anything else is an error that names the layer, what it expected and what it got.
#'
#' @section Gradients:
#'
#' `layer$vjp(input, hx = NULL, lengths = NULL, reset = NULL)`, which takes no packed sequences,
#' returns a list of `output`, `hx`, the final states as the layer returns them, and `vjp`, a
#' function of `d_output = NULL` and `d_hx = NULL`, which are shaped as these; `NULL` is zero, also
#' in place of one of an LSTM's two. It returns the gradients of `sum(output * d_output) +
#' sum(hx * d_hx)`: a list of `input` and `hx`, shaped as the layer takes them, and of every weight by
#' its name. It may be called more than once.
#'
#' @section Weights:
#'
#' Layer k, counted from 1, has `weight_ih_l{k}` (G * H, D), `weight_hh_l{k}` (G * H, P),
#' `bias_ih_l{k}` and `bias_hh_l{k}` (G * H), with `proj_size` also `weight_hr_l{k}` (P, H), and
#' with the suffix `_reverse` those of the second direction. G is 4 for an LSTM, whose rows are
#' those of i, f, g and o, 3 for a GRU, whose rows are those of r, z and n, and 1 for an RNN. Layers
#' above the first take the directions * P values of the one below instead of D. Every weight starts
#' uniform between
#' \eqn{-1/\sqrt{H}}{-1/sqrt(H)} and \eqn{1/\sqrt{H}}{1/sqrt(H)}.
#'
#' `layer$parameters` is the named list of all weights, and `layer$state_dict()` and `coef(layer)`
#' the same; `layer$load_state_dict(weights)` and `layer$parameters <- weights` set them, and
#' `layer$weight_ih_l1 <- w` sets one. As in torch, a layer is one object under all its names: a
#' copy of it has the same weights.
#'
#' `layer$eval()` turns dropout off, `layer$train()` on again. A new layer has it on. What it sets
#' to 0 is drawn from R's random numbers.
#'
#' torch's own layer has the same weights: `layer$load_state_dict(torchs$state_dict())` takes them,
#' and `torchs$load_state_dict(lapply(layer$state_dict(), torch::torch_tensor))` gives them back.
#' [convert_weights()] turns those of Keras and PyTorch into these, and [save_layer()] writes a
#' file.
#'
#' @param input_size number of features D of the input.
#' @param hidden_size number of hidden units H.
#' @param num_layers number of layers. Each above the first reads the output of the one below.
#' @param bias whether there are the weights b.
#' @param batch_first whether input and output are (N, L, ...) instead of (L, N, ...).
#' @param dropout probability that a value between layers is set to 0 in training; the others are
#'   divided by 1 - `dropout`.
#' @param bidirectional whether there is a second direction, from the end to the start.
#' @param ... must be empty.
#' @param reset_after whether the reset gate is applied after the recurrent product, as torch and
#'   cuDNN have it, or before it, as Cho et al., ONNX's default and Keras's `reset_after = FALSE`.
#' @param seed of the initial weights, as for [set.seed()]. By default R's random numbers go on.
#' @param dtype the precision of the weights and of the computation: `"float32"` or `"float64"`.
#'   Arrays are R's own numbers either way. There is no half precision.
#' @param recompute whether `vjp` keeps the states alone, and computes the gates from them once
#'   more: a fifth of the memory for a GRU, a third for an LSTM, for up to 1.4 times the time, and
#'   the same gradients, bit for bit. It changes nothing for an RNN, which keeps no more.
#'
#' @return A layer, which is called as a function; see also [summary()][summary.elman_module()],
#'   [predict()][predict.elman_module()] and [coef()][coef.elman_module()].
#'
#' @references
#' Cho et al. (2014), Learning Phrase Representations using RNN Encoder-Decoder for Statistical
#' Machine Translation, EMNLP. \doi{10.3115/v1/D14-1179}.
#'
#' @seealso [nn_gru_cell()] for single steps, [convert_weights()] and [save_layer()], and
#'   `vignette("training", "elman")`.
#'
#' @examples
#' rnn <- nn_gru(10, 20, 2)
#' input <- array(rnorm(5 * 3 * 10), c(5, 3, 10))
#' h0 <- array(rnorm(2 * 3 * 20), c(2, 3, 20))
#' output <- rnn(input, h0)
#' lapply(output, dim)
#'
#' # Rows of different lengths
#' output <- rnn(input, h0, lengths = c(5, 2, 4))
#'
#' # Gradients of the sum of all outputs
#' there <- rnn$vjp(input, h0)
#' gradients <- there$vjp(array(1, dim(there$output)))
#' names(gradients)
#'
#' # One row alone, and its state from call to call
#' h <- matrix(0, 2, 20)
#' for (chunk in 1:3) h <- rnn(matrix(rnorm(4 * 10), 4, 10), h)[[2]]
#' @export
nn_gru <- function(input_size, hidden_size, num_layers = 1, bias = TRUE, batch_first = FALSE,
                   dropout = 0, bidirectional = FALSE, ..., reset_after = TRUE, seed = NULL,
                   dtype = "float32", recompute = FALSE) {
  check_empty("nn_gru", ...)
  new_layer("nn_gru", gru_named("nn_gru", reset_after), input_size, hidden_size, num_layers, bias,
    batch_first, dropout, bidirectional, seed, dtype, recompute,
    reset_after = reset_after
  )
}

#' Long short-term memory
#'
#' One or more layers, in one or two directions. Each step of a layer computes
#'
#' \deqn{i = \sigma(W_{ii} x + b_{ii} + W_{hi} h + b_{hi})}{i = sigmoid(W_ii x + b_ii + W_hi h + b_hi)}
#' \deqn{f = \sigma(W_{if} x + b_{if} + W_{hf} h + b_{hf})}{f = sigmoid(W_if x + b_if + W_hf h + b_hf)}
#' \deqn{g = \tanh(W_{ig} x + b_{ig} + W_{hg} h + b_{hg})}{g = tanh(W_ig x + b_ig + W_hg h + b_hg)}
#' \deqn{o = \sigma(W_{io} x + b_{io} + W_{ho} h + b_{ho})}{o = sigmoid(W_io x + b_io + W_ho h + b_ho)}
#' \deqn{c' = f * c + i * g}{c' = f * c + i * g}
#' \deqn{h' = o * \tanh(c')}{h' = o * tanh(c')}
#'
#' or, with `proj_size`, \eqn{h' = W_{hr} (o * \tanh(c'))}{h' = W_hr (o * tanh(c'))},
#' from the input x and the states h and c before, which are zero at first unless `hx` is given.
#' \eqn{\sigma}{sigmoid} is the logistic function, [stats::plogis()], and `*` multiplies value by
#' value.
#'
#' @inheritSection nn_gru The layer
#' @inheritSection nn_gru Gradients
#' @inheritSection nn_gru Weights
#' @inheritParams nn_gru
#' @param proj_size number of features P of h and of the output, to which a projection takes the H
#'   units; from 0, no projection, to H - 1.
#' @inherit nn_gru return
#'
#' @references
#' Hochreiter and Schmidhuber (1997), Long Short-Term Memory, Neural Computation 9.
#' \doi{10.1162/neco.1997.9.8.1735}. With the forget gate of Gers, Schmidhuber and Cummins (2000),
#' Learning to Forget, Neural Computation 12. \doi{10.1162/089976600300015015}. With the projection
#' of Sak, Senior and Beaufays (2014), \url{https://arxiv.org/abs/1402.1128}.
#'
#' @examples
#' rnn <- nn_lstm(10, 20, 2)
#' input <- array(rnorm(5 * 3 * 10), c(5, 3, 10))
#' h0 <- array(rnorm(2 * 3 * 20), c(2, 3, 20))
#' c0 <- array(rnorm(2 * 3 * 20), c(2, 3, 20))
#' output <- rnn(input, list(h0, c0))
#'
#' # Gradients of the sum of the last c
#' there <- rnn$vjp(input, list(h0, c0))
#' gradients <- there$vjp(NULL, list(NULL, array(1, c(2, 3, 20))))
#' dim(gradients$weight_hh_l2)
#'
#' # States of 20, of which 5 features are made
#' output <- nn_lstm(10, 20, proj_size = 5)(input)
#' dim(output[[1]])
#' @export
nn_lstm <- function(input_size, hidden_size, num_layers = 1, bias = TRUE, batch_first = FALSE,
                    dropout = 0, bidirectional = FALSE, ..., proj_size = 0, seed = NULL,
                    dtype = "float32", recompute = FALSE) {
  check_empty("nn_lstm", ...)
  new_layer("nn_lstm", "lstm", input_size, hidden_size, num_layers, bias, batch_first, dropout,
    bidirectional, seed, dtype, recompute,
    proj_size = proj_size
  )
}

#' Elman recurrent network
#'
#' One or more layers, in one or two directions. Each step of a layer computes
#'
#' \deqn{h' = \tanh(W_{ih} x + b_{ih} + W_{hh} h + b_{hh})}{h' = tanh(W_ih x + b_ih + W_hh h + b_hh)}
#'
#' or, with `nonlinearity = "relu"`, the positive part in place of tanh, from the input x and the
#' state h before, which is zero at first unless `hx` is given.
#'
#' @inheritSection nn_gru The layer
#' @inheritSection nn_gru Gradients
#' @inheritSection nn_gru Weights
#' @inheritParams nn_gru
#' @param nonlinearity `"tanh"`, which `NULL` stands for, or `"relu"`.
#' @inherit nn_gru return
#'
#' @references
#' Elman (1990), Finding Structure in Time, Cognitive Science 14. \doi{10.1207/s15516709cog1402_1}
#'
#' @examples
#' rnn <- nn_rnn(10, 20, 2)
#' input <- array(rnorm(5 * 3 * 10), c(5, 3, 10))
#' h0 <- array(rnorm(2 * 3 * 20), c(2, 3, 20))
#' output <- rnn(input, h0)
#' @export
nn_rnn <- function(input_size, hidden_size, num_layers = 1, nonlinearity = NULL, bias = TRUE,
                   batch_first = FALSE, dropout = 0, bidirectional = FALSE, ..., seed = NULL,
                   dtype = "float32", recompute = FALSE) {
  check_empty("nn_rnn", ...)
  nonlinearity <- if (is.null(nonlinearity)) "tanh" else nonlinearity
  check_nonlinearity("nn_rnn", nonlinearity)
  new_layer("nn_rnn", paste0("rnn_", nonlinearity), input_size, hidden_size, num_layers, bias,
    batch_first, dropout, bidirectional, seed, dtype, recompute,
    nonlinearity = nonlinearity
  )
}

new_layer <- function(name, cell, input_size, hidden_size, num_layers, bias, batch_first, dropout,
                      bidirectional, seed, dtype, recompute, ...) {
  arguments <- list(
    input_size = input_size, hidden_size = hidden_size, num_layers = num_layers, ..., bias = bias,
    batch_first = batch_first, dropout = dropout, bidirectional = bidirectional,
    recompute = recompute
  )
  new_module(name, cell, FALSE, arguments, seed, dtype)
}
