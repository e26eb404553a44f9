# A module: a layer or a cell. Its function has the attribute `self`, an environment, so that a copy
# of a module is the same module. `self$handle` is the engine's, and has the weights.

new_module <- function(name, cell, is_cell, arguments, seed, dtype) {
  self <- list2env(check_arguments(name, modifyList(one_layer, arguments)))
  check_dtype(name, dtype)
  about <- .Call(C_cell, name, cell)
  self$name <- name
  self$cell <- cell
  self$is_cell <- is_cell
  self$dtype <- dtype
  self$states <- about[2]
  self$output_size <- if (self$proj_size > 0) self$proj_size else self$hidden_size
  self$directions <- if (self$bidirectional) 2 else 1
  self$training <- TRUE
  self$arguments <- names(arguments)
  self$shapes <- weight_shapes(self, about[1])
  set_weights(self, initial_weights(self, seed))
  call <- if (is_cell) {
    function(input, hx = NULL) run_cell(self, input, hx)
  } else {
    function(input, hx = NULL, lengths = NULL, reset = NULL) {
      run(self, input, hx, lengths, reset, self$training)
    }
  }
  structure(call, self = self, class = c("elman_module", "function"))
}

# What a cell is as a layer.
one_layer <- list(
  num_layers = 1, batch_first = FALSE, dropout = 0, bidirectional = FALSE, proj_size = 0,
  recompute = FALSE
)

# Beyond these no layer could be built, and an attempt would take all memory, or for ever.
most <- list(input_size = 2^31 - 1, hidden_size = 2^29 - 1, num_layers = 2^16)

check_arguments <- function(name, arguments) {
  for (size in names(most)) {
    arguments[[size]] <- count(name, size, arguments[[size]], most[[size]])
  }
  for (flag in c("bias", "batch_first", "bidirectional", "recompute")) {
    check_flag(name, flag, arguments[[flag]])
  }
  arguments$proj_size <- whole(name, "proj_size", arguments$proj_size)
  if (arguments$proj_size < 0 || arguments$proj_size >= arguments$hidden_size) {
    fail(name, "proj_size must lie between 0 and hidden_size - 1 = ", arguments$hidden_size - 1,
      ", got ", arguments$proj_size
    )
  }
  arguments$dropout <- dropout_of(name, arguments$dropout)
  if (arguments$dropout > 0 && arguments$num_layers == 1) {
    warning(name, ": dropout comes between layers, and num_layers is 1", call. = FALSE)
  }
  arguments
}

# --- Weights -------------------------------------------------------------------------------------

# The dimensions of every weight, by name.
weight_shapes <- function(self, gates) {
  rows <- as.numeric(gates) * self$hidden_size
  shapes <- lapply(seq_len(self$num_layers), function(layer) {
    size <- if (layer == 1) self$input_size else self$directions * self$output_size
    one <- list(
      weight_ih = c(rows, size), weight_hh = c(rows, self$output_size),
      bias_ih = rows, bias_hh = rows, weight_hr = c(self$output_size, self$hidden_size)
    )[c(TRUE, TRUE, self$bias, self$bias, self$proj_size > 0)]
    suffixes <- paste0("_l", layer, c("", "_reverse"))[seq_len(self$directions)]
    if (self$is_cell) suffixes <- ""
    names <- paste0(names(one), rep(suffixes, each = length(one)))
    setNames(rep(one, self$directions), names)
  })
  do.call(c, shapes)
}

initial_weights <- function(self, seed) {
  bound <- 1 / sqrt(self$hidden_size)
  one <- function(shape) array(runif(prod(shape), -bound, bound), shape)
  if (!is.null(seed)) seed <- whole(self$name, "seed", seed)
  values <- sum(vapply(self$shapes, prod, 0))
  if (values > 2^48) fail(self$name, "not enough memory for ", values, " weights")
  tryCatch(with_seed(seed, lapply(self$shapes, one)), error = function(e) {
    fail(self$name, conditionMessage(e))
  })
}

# Evaluates with random numbers of their own, if there is a seed.
with_seed <- function(seed, expr) {
  if (is.null(seed)) return(expr)
  global <- globalenv()
  before <- global$.Random.seed
  on.exit({
    if (is.null(before)) rm(".Random.seed", envir = global) else global$.Random.seed <- before
  })
  set.seed(seed)
  expr
}

get_weights <- function(self) {
  weights <- .Call(C_describe, self$handle)$weights
  names(weights) <- names(self$shapes)
  weights
}

set_weights <- function(self, weights) {
  missing <- setdiff(names(self$shapes), names(weights))
  unexpected <- setdiff(names(weights), names(self$shapes))
  if (length(missing) || length(unexpected)) {
    fail(self$name, "weights missing: ", names_text(missing), ", unexpected: ",
      names_text(unexpected)
    )
  }
  twice <- names(weights)[duplicated(names(weights))]
  if (length(twice)) fail(self$name, "weights given twice: ", names_text(twice))
  read <- function(name) {
    shape <- self$shapes[[name]]
    w <- weights[[name]]
    if (inherits(w, "torch_tensor")) w <- as.array(w)
    w <- .Call(C_weight, array_of(self$name, name, w, shape), self$dtype == "float64")
    if (length(shape) > 1) dim(w) <- shape
    w
  }
  self$handle <- .Call(C_layer, list(
    name = self$name, cell = self$cell,
    sizes = as.integer(c(
      self$num_layers, self$directions, self$input_size, self$hidden_size, self$output_size,
      self$states
    )),
    dtype = self$dtype, recompute = self$recompute, weights = lapply(names(self$shapes), read)
  ))
}

# --- What R asks of an object --------------------------------------------------------------------

#' @export
`$.elman_module` <- function(x, name) {
  self <- attr(x, "self")
  switch(name,
    parameters = get_weights(self),
    state_dict = function() get_weights(self),
    load_state_dict = function(weights) {
      set_weights(self, weights)
      invisible(x)
    },
    train = function(mode = TRUE) {
      check_flag(self$name, "mode", mode)
      self$training <- mode
      invisible(x)
    },
    eval = function() {
      self$training <- FALSE
      invisible(x)
    },
    vjp = if (self$is_cell) {
      function(input, hx = NULL) vjp_cell(self, input, hx)
    } else {
      function(input, hx = NULL, lengths = NULL, reset = NULL) vjp(self, input, hx, lengths, reset)
    },
    if (name %in% c(self$arguments, "training", "dtype")) {
      self[[name]]
    } else {
      get_weights(self)[[name]]
    }
  )
}

#' @export
`$<-.elman_module` <- function(x, name, value) {
  self <- attr(x, "self")
  if (name != "parameters") {
    weights <- get_weights(self)
    weights[[name]] <- value
    value <- weights
  }
  set_weights(self, value)
  x
}

#' @export
print.elman_module <- function(x, ...) {
  cat(written(attr(x, "self")), "\n", sep = "")
  invisible(x)
}

# The call that makes such a layer, without what is as by default.
written <- function(self) {
  defaults <- list(
    num_layers = 1, nonlinearity = "tanh", bias = TRUE, batch_first = FALSE, dropout = 0,
    bidirectional = FALSE, reset_after = TRUE, proj_size = 0, dtype = "float32", recompute = FALSE
  )
  known <- intersect(names(defaults), c(self$arguments, "dtype"))
  given <- Filter(function(name) !identical(self[[name]], defaults[[name]]), known)
  sizes <- paste(self$input_size, self$hidden_size, sep = ", ")
  text <- vapply(given, function(name) paste0(name, " = ", deparse1(self[[name]])), "")
  paste0(self$name, "(", paste(c(sizes, text), collapse = ", "), ")")
}

#' Methods of layers and cells
#'
#' `summary()` gives the shape of every weight and how many numbers they are, `coef()` the weights,
#' and `predict()` the output in evaluation, without dropout. [saveRDS()] and [readRDS()] keep a
#' layer as any other object.
#'
#' @param object,x a layer or cell, or a summary of one.
#' @param input what the layer takes.
#' @param ... for `predict()` further arguments of the layer: `hx`, `lengths`, `reset`; else unused.
#'
#' @return `summary()`: a list of `layer`, the call that makes one, and `weights`, a data frame of
#'   `name`, `shape` and `values`. `coef()`: a list of arrays. `predict()`: an array, the output.
#'
#' @examples
#' layer <- nn_gru(10, 20, 2, dropout = 0.5)
#' summary(layer)
#' dim(coef(layer)$weight_ih_l1)
#' dim(predict(layer, array(0, c(5, 3, 10)), lengths = c(5, 2, 4)))
#' @name elman_module
NULL

#' @rdname elman_module
#' @export
summary.elman_module <- function(object, ...) {
  self <- attr(object, "self")
  weights <- data.frame(
    name = names(self$shapes),
    shape = vapply(self$shapes, function(s) paste0("(", paste(s, collapse = ", "), ")"), ""),
    values = vapply(self$shapes, prod, 0),
    row.names = NULL
  )
  structure(list(layer = written(self), weights = weights), class = "summary.elman_module")
}

#' @rdname elman_module
#' @export
print.summary.elman_module <- function(x, ...) {
  cat(x$layer, "\n", sep = "")
  print(x$weights, row.names = FALSE, right = FALSE)
  cat(sum(x$weights$values), "values\n")
  invisible(x)
}

#' @rdname elman_module
#' @export
coef.elman_module <- function(object, ...) get_weights(attr(object, "self"))

#' @rdname elman_module
#' @export
predict.elman_module <- function(object, input, ...) {
  self <- attr(object, "self")
  if (self$is_cell) {
    result <- object(input, ...)
    return(if (is.list(result)) result[[1]] else result)
  }
  in_evaluation <- function(input, hx = NULL, lengths = NULL, reset = NULL) {
    run(self, input, hx, lengths, reset, FALSE)[[1]]
  }
  in_evaluation(input, ...)
}
