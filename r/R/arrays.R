# R arrays to NumPy's and back. They cross as bytes with their dimensions, because reticulate 1.28
# converts arrays for NumPy 1 only. R lays arrays out by columns: NumPy's order "F".

to_numpy <- function(x, dtype) {
  shape <- if (is.null(dim(x))) length(x) else dim(x)
  flat <- python$numpy$frombuffer(writeBin(as.double(x), raw()), "float64")
  shaped <- flat$reshape(do.call(reticulate::tuple, as.list(shape)), order = "F")
  shaped$astype(dtype)
}

from_numpy <- function(a) {
  shape <- unlist(reticulate::py_to_r(a$shape))
  bytes <- python$builtins$bytearray(a$astype("float64")$tobytes(order = "F"))
  x <- readBin(reticulate::py_to_r(bytes), "double", prod(shape))
  if (length(shape) > 1) array(x, shape) else x
}
