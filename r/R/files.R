#' Read and write safetensors files
#'
#' The format of <https://huggingface.co/docs/safetensors>: named arrays, which Python, Rust and
#' JavaScript read as well. Nothing in a file is ever run.
#'
#' @param path a file.
#' @param tensors a list of numeric arrays, with names.
#' @param metadata a named character vector that goes with them.
#' @param dtype how numbers are written: `"float32"` or `"float64"`.
#'
#' @return `read_safetensors()`: a list of arrays by name, of one axis as vectors, with the
#'   attribute `metadata`. All types of numbers are read, as R's; integers beyond 2^53 are rounded.
#'   `write_safetensors()` returns `path`, invisibly. The file appears whole or not at all.
#'
#' @seealso [save_layer()] for a whole layer, [convert_weights()] for other frameworks' weights.
#'
#' @examples
#' path <- tempfile(fileext = ".safetensors")
#' write_safetensors(nn_gru(10, 20)$parameters, path)
#' weights <- read_safetensors(path)
#' dim(weights$weight_ih_l1)
#' @export
read_safetensors <- function(path) {
  not_one <- function(...) {
    fail("read_safetensors", deparse1(path), " is not a safetensors file: ", ...)
  }
  file <- open_file("read_safetensors", path)
  on.exit(close(file))
  size <- file.size(path)
  head <- if (size < 8) Inf else sum(as.numeric(readBin(file, "raw", 8)) * 256^(0:7))
  if (head > size - 8) not_one("it ends before its header does")
  text <- readBin(file, "raw", head)
  header <- tryCatch(jsonlite::fromJSON(utf8(text), simplifyVector = FALSE), error = function(e) {
    not_one("its header is no JSON")
  })
  if (!is.list(header) || is.null(names(header)) && length(header)) {
    not_one("its header names no tensors")
  }
  data <- readBin(file, "raw", size - 8 - head)
  metadata <- header[["__metadata__"]]
  tensors <- lapply(header[setdiff(names(header), "__metadata__")], read_tensor, data, not_one)
  structure(tensors, metadata = unlist(metadata))
}

# An entry of the header with its bytes of the data.
read_tensor <- function(entry, data, not_one) {
  known <- tryCatch(
    list(
      type = tensor_types[[entry$dtype]], shape = as.numeric(unlist(entry$shape)),
      at = as.numeric(unlist(entry$data_offsets))
    ),
    error = function(e) not_one("an entry of its header is none")
  )
  at <- known$at
  if (is.null(known$type)) not_one("it has the type ", deparse1(entry$dtype))
  if (anyNA(known$shape) || any(known$shape < 0) || length(at) != 2 || anyNA(at) ||
    at[1] < 0 || at[2] > length(data) || at[2] - at[1] != prod(known$shape) * known$type$bytes) {
    not_one("an entry of its header lies")
  }
  values <- known$type$read(data[at[1] + seq_len(at[2] - at[1])])
  if (length(known$shape) < 2) values else aperm(array(values, rev(known$shape)))
}

#' @rdname read_safetensors
#' @export
write_safetensors <- function(tensors, path, metadata = NULL, dtype = "float32") {
  check_dtype("write_safetensors", dtype)
  check_path("write_safetensors", path)
  if (!is.list(tensors) || is.null(names(tensors)) || !all(vapply(tensors, is.numeric, NA))) {
    fail("write_safetensors", "tensors must be a list of numeric arrays with names, got ",
      class(tensors)[1]
    )
  }
  check_names("tensors", tensors)
  if (!is.null(metadata) && !is.character(metadata)) {
    fail("write_safetensors", "metadata must be a character vector, got ", class(metadata)[1])
  }
  check_names("metadata", metadata)
  if (dtype == "float32") check_range(tensors)
  type <- if (dtype == "float64") "F64" else "F32"
  bytes <- tensor_types[[type]]$bytes
  ends <- cumsum(vapply(tensors, length, 0) * bytes)
  shapes <- vapply(tensors, function(x) paste(shape(x), collapse = ","), "")
  entries <- sprintf(
    '%s:{"dtype":"%s","shape":[%s],"data_offsets":[%.0f,%.0f]}',
    quoted(names(tensors)), type, shapes, c(0, ends)[seq_along(ends)], ends
  )
  if (length(metadata)) {
    pairs <- paste0(quoted(names(metadata)), ":", quoted(metadata), collapse = ",")
    entries <- c(paste0('"__metadata__":{', pairs, "}"), entries)
  }
  header <- charToRaw(enc2utf8(paste0("{", paste(entries, collapse = ","), "}")))
  header <- c(header, charToRaw(strrep(" ", -length(header) %% 8)))
  write_whole(path, function(file) {
    writeBin(c(length(header), 0L), file, 4, endian = "little")
    writeBin(header, file)
    for (x in tensors) writeBin(in_rows(x), file, bytes, endian = "little")
  })
  invisible(path)
}

check_names <- function(what, given) {
  names <- names(given)
  bad <- is.na(names) | names %in% c("", "__metadata__") | duplicated(names)
  if (any(bad) || length(names) != length(given)) {
    fail("write_safetensors", what, " must have names of their own, got ",
      if (any(bad)) deparse1(names[bad][1]) else "none"
    )
  }
}

check_range <- function(tensors) {
  largest <- (2 - 2^-24) * 2^127 # from here on float32 rounds to infinity
  for (name in names(tensors)) {
    x <- tensors[[name]]
    beyond <- which(is.finite(x) & abs(x) >= largest)
    if (length(beyond)) {
      fail("write_safetensors", name, " has ", x[beyond[1]], ", which only float64 can hold")
    }
  }
}

#' Save a layer to a file and load it
#'
#' In a safetensors file, with the arguments that make the layer in its metadata. Elman for Python
#' reads these files (`elman.load(path)`) and writes such (`layer.save(path)`).
#'
#' @param layer a layer of [nn_rnn()], [nn_gru()] or [nn_lstm()].
#' @param path a file.
#'
#' @return `load_layer()`: the layer. `save_layer()`: `path`, invisibly.
#'
#' @examples
#' path <- tempfile(fileext = ".safetensors")
#' save_layer(nn_gru(10, 20, 2), path)
#' load_layer(path)
#' @export
save_layer <- function(layer, path) {
  self <- attr(layer, "self")
  if (!inherits(layer, "elman_module") || self$is_cell) {
    fail("save_layer", "expected a layer of nn_rnn, nn_gru or nn_lstm, got ",
      if (inherits(layer, "elman_module")) self$name else class(layer)[1]
    )
  }
  options <- mget(c(
    "cell", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout",
    "bidirectional", "proj_size", "dtype"
  ), envir = self)
  metadata <- c(elman = as.character(jsonlite::toJSON(options, auto_unbox = TRUE, digits = NA)))
  write_safetensors(count_layers(get_weights(self), -1), path, metadata, self$dtype)
}

#' @rdname save_layer
#' @export
load_layer <- function(path) {
  weights <- read_safetensors(path)
  tryCatch(
    {
      options <- jsonlite::fromJSON(attr(weights, "metadata")[["elman"]])
      # Before time and memory are taken for what the file says of itself.
      if (isTRUE(options$num_layers > length(weights))) {
        fail("num_layers", options$num_layers, " layers of ", length(weights), " weights")
      }
      layer <- layer_with(options)
      layer$load_state_dict(count_layers(weights, 1))
    },
    error = function(e) {
      fail("load_layer", deparse1(path), " does not describe an Elman layer: ", conditionMessage(e))
    }
  )
}

# The layer that such options make, which are Elman's for Python.
layer_with <- function(options) {
  builds <- list(
    rnn_tanh = nn_rnn, rnn_relu = nn_rnn, gru = nn_gru, gru_reset_before = nn_gru, lstm = nn_lstm
  )
  build <- builds[[options$cell]]
  if (is.null(build)) fail("cell", deparse1(options$cell), " is none of this package's")
  if (options$cell == "rnn_relu") options$nonlinearity <- "relu"
  if (options$cell == "gru_reset_before") options$reset_after <- FALSE
  if (identical(options$proj_size, 0L)) options$proj_size <- NULL
  options$cell <- NULL
  options$seed <- 0 # of weights that the file's stand in for
  do.call(build, options)
}

# --- Bytes ---------------------------------------------------------------------------------------

of_numbers <- function(what, bytes, signed = TRUE) {
  read <- function(data) {
    as.numeric(readBin(data, what, length(data) / bytes, bytes, signed, endian = "little"))
  }
  list(bytes = bytes, read = read)
}

# Of integers that R's do not hold: two halves.
of_halves <- function(half, signed) {
  read <- function(data) {
    parts <- matrix(as.numeric(data), 2 * half)
    value <- function(rows) colSums(parts[rows, , drop = FALSE] * 256^(seq_len(half) - 1))
    high <- value(half + seq_len(half))
    limit <- 256^half
    if (signed) high <- ifelse(high >= limit / 2, high - limit, high)
    high * limit + value(seq_len(half))
  }
  list(bytes = 2 * half, read = read)
}

read_float16 <- function(data) {
  bits <- readBin(data, "integer", length(data) / 2, 2, FALSE, endian = "little")
  sign <- ifelse(bits >= 32768, -1, 1)
  exponent <- bits %/% 1024 %% 32
  fraction <- bits %% 1024 / 1024
  size <- (1 + fraction) * 2^(exponent - 15)
  size[exponent == 0] <- fraction[exponent == 0] * 2^-14
  size[exponent == 31] <- ifelse(fraction[exponent == 31] == 0, Inf, NaN)
  sign * size
}

# The upper half of a float32.
read_bfloat16 <- function(data) {
  wide <- rbind(as.raw(0), as.raw(0), matrix(data, 2))
  readBin(as.vector(wide), "double", ncol(wide), 4, endian = "little")
}

tensor_types <- list(
  F64 = of_numbers("double", 8), F32 = of_numbers("double", 4),
  F16 = list(bytes = 2, read = read_float16), BF16 = list(bytes = 2, read = read_bfloat16),
  I8 = of_numbers("integer", 1), I16 = of_numbers("integer", 2), I32 = of_numbers("integer", 4),
  U8 = of_numbers("integer", 1, FALSE), U16 = of_numbers("integer", 2, FALSE),
  BOOL = of_numbers("integer", 1, FALSE), U32 = of_halves(2, FALSE),
  I64 = of_halves(4, TRUE), U64 = of_halves(4, FALSE)
)

in_rows <- function(x) as.double(if (length(dim(x)) < 2) x else aperm(x))

utf8 <- function(bytes) {
  text <- rawToChar(bytes)
  Encoding(text) <- "UTF-8"
  text
}

quoted <- function(text) {
  vapply(text, function(t) as.character(jsonlite::toJSON(t, auto_unbox = TRUE)), "")
}

open_file <- function(name, path) {
  if (!is.character(path) || length(path) != 1 || !file_test("-f", path)) {
    fail(name, deparse1(path), " is no file")
  }
  file(path, "rb")
}

check_path <- function(name, path) {
  if (!is.character(path) || length(path) != 1 || is.na(path)) {
    fail(name, "path must be a file's, got ", deparse1(path))
  }
  if (!dir.exists(dirname(path))) fail(name, deparse1(dirname(path)), " is no folder")
}

# Written under another name beside it, and moved into place.
write_whole <- function(path, write) {
  temporary <- tempfile(".", dirname(path))
  on.exit(unlink(temporary))
  file <- file(temporary, "wb")
  tryCatch(write(file), finally = close(file))
  if (!file.rename(temporary, path)) stop("cannot write ", deparse1(path), call. = FALSE)
}
