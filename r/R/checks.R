# What arguments must be, and errors that name the layer, what was expected and what came.

check_empty <- function(layer, ...) {
  if (...length()) {
    given <- ...names()
    stop(layer, ": unexpected arguments: ", if (is.null(given)) ...length() else names_text(given),
      call. = FALSE
    )
  }
}

whole <- function(layer, name, value) {
  if (!is.numeric(value) || length(value) != 1 || is.na(value) || value != round(value)) {
    stop(layer, ": ", name, " must be a whole number, got ", deparse1(value), call. = FALSE)
  }
  as.integer(value)
}

check_dtype <- function(layer, dtype) {
  if (!identical(dtype, "float32") && !identical(dtype, "float64")) {
    stop(layer, ": dtype must be float32 or float64, got ", deparse1(dtype), call. = FALSE)
  }
}

check_numeric <- function(layer, name, x) {
  if (!is.numeric(x)) {
    stop(layer, ": ", name, " must be numeric, got ", class(x)[1], call. = FALSE)
  }
}

check_shape <- function(layer, name, x, expected) {
  if (!identical(as.integer(shape(x)), as.integer(expected))) {
    stop(layer, ": ", name, " must have the dimensions (", paste(expected, collapse = ", "),
      "), got ", shape_text(x),
      call. = FALSE
    )
  }
}

check_lengths <- function(layer, lengths, N, least, L) {
  if (!is.numeric(lengths) || length(lengths) != N) {
    stop(layer, ": lengths must be ", N, " numbers, one a row, got ", length(lengths), " of class ",
      class(lengths)[1],
      call. = FALSE
    )
  }
  bad <- which(is.na(lengths) | lengths != round(lengths) | lengths < least | lengths > L)
  if (length(bad)) {
    stop(layer, ": lengths must be whole numbers from ", least, " to ", L, ", got ",
      lengths[bad[1]], " for row ", bad[1],
      call. = FALSE
    )
  }
}

# Run an expression; what Python raises becomes R's error, in the layer's R name.
from_python <- function(layer, expr) {
  tryCatch(expr, error = function(e) {
    text <- sub("^[A-Za-z]*(Error|Exception): ", "", trimws(conditionMessage(e)))
    stop(layer, ": ", sub("^[A-Z]+: ", "", text), call. = FALSE)
  })
}

shape <- function(x) if (is.null(dim(x))) length(x) else dim(x)

shape_text <- function(x) paste0("(", paste(shape(x), collapse = ", "), ")")

names_text <- function(names) if (length(names)) paste(names, collapse = ", ") else "none"
