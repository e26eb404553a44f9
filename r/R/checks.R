# What arguments must be, and errors that name the layer, what was expected and what came.

fail <- function(layer, ...) stop(layer, ": ", ..., call. = FALSE)

check_empty <- function(layer, ...) {
  if (...length()) {
    given <- ...names()
    fail(layer, "unexpected arguments: ", if (is.null(given)) ...length() else names_text(given))
  }
}

whole <- function(layer, name, value, most = .Machine$integer.max) {
  if (!is.numeric(value) || length(value) != 1 || is.na(value) || value != round(value)) {
    fail(layer, name, " must be a whole number, got ", deparse1(value))
  }
  if (abs(value) > most) fail(layer, name, " must be at most ", most, ", got ", value)
  as.numeric(value)
}

# At least 1.
count <- function(layer, name, value, ...) {
  value <- whole(layer, name, value, ...)
  if (value < 1) fail(layer, name, " must be at least 1, got ", value)
  value
}

check_flag <- function(layer, name, value) {
  if (!isTRUE(value) && !isFALSE(value)) {
    fail(layer, name, " must be TRUE or FALSE, got ", deparse1(value))
  }
}

dropout_of <- function(layer, value) {
  if (!is.numeric(value) || length(value) != 1 || is.na(value)) {
    fail(layer, "dropout must be a number, got ", deparse1(value))
  }
  if (value < 0 || value > 1) fail(layer, "dropout must lie in [0, 1], got ", value)
  as.numeric(value)
}

check_dtype <- function(layer, dtype) {
  if (!identical(dtype, "float32") && !identical(dtype, "float64")) {
    fail(layer, "dtype must be float32 or float64, got ", deparse1(dtype))
  }
}

check_nonlinearity <- function(layer, nonlinearity) {
  if (!identical(nonlinearity, "tanh") && !identical(nonlinearity, "relu")) {
    fail(layer, "nonlinearity must be 'tanh' or 'relu', got ", deparse1(nonlinearity))
  }
}

# The engine's name of the GRU whose reset gate is applied after the recurrent product, or before.
gru_named <- function(layer, reset_after) {
  check_flag(layer, "reset_after", reset_after)
  if (reset_after) "gru" else "gru_reset_before"
}

# The numbers of an array, as the engine reads them. NA alone is logical to R. Classes have methods
# of their own, as that of 64-bit integers, whose numbers else would be read as others.
numbers_of <- function(layer, name, x) {
  if (!is.numeric(x) && !(is.logical(x) && all(is.na(x)))) {
    fail(layer, name, " must be numeric, got ", if (is.object(x)) class(x)[1] else mode(x))
  }
  if (is.object(x)) x <- structure(as.double(x), dim = dim(x))
  if (!is.double(x)) storage.mode(x) <- "double"
  x
}

# The same, if it has these dimensions.
array_of <- function(layer, name, x, expected) {
  x <- numbers_of(layer, name, x)
  size <- shape(x)
  if (length(size) != length(expected) || any(size != expected)) {
    fail(layer, name, " must have the dimensions (", paste(expected, collapse = ", "), "), got ",
      shape_text(x)
    )
  }
  x
}

lengths_of <- function(layer, lengths, N, least, L) {
  if (!is.numeric(lengths) || length(lengths) != N) {
    fail(layer, "lengths must be ", N, if (N == 1) " number" else " numbers", ", one a row, got ",
      length(lengths), " of class ", class(lengths)[1]
    )
  }
  bad <- which(is.na(lengths) | lengths != round(lengths) | lengths < least | lengths > L)
  if (length(bad)) {
    fail(layer, "lengths must be whole numbers from ", least, " to ", L, ", got ",
      lengths[bad[1]], " for row ", bad[1]
    )
  }
  as.integer(lengths)
}

reset_of <- function(layer, reset, expected) {
  if (!is.logical(reset) || anyNA(reset)) {
    fail(layer, "reset must be TRUE or FALSE throughout, got ", class(reset)[1])
  }
  if (!identical(shape(reset), expected)) {
    fail(layer, "reset must have the dimensions (", paste(expected, collapse = ", "), "), got ",
      shape_text(reset)
    )
  }
  reset
}

shape <- function(x) if (is.null(dim(x))) length(x) else dim(x)

shape_text <- function(x) paste0("(", paste(shape(x), collapse = ", "), ")")

names_text <- function(names) if (length(names)) paste(names, collapse = ", ") else "none"
