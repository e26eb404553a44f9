# NumPy's files of arrays.

read_npz <- function(path) {
  folder <- tempfile()
  on.exit(unlink(folder, recursive = TRUE))
  files <- unzip(path, exdir = folder)
  arrays <- lapply(files, read_npy)
  names(arrays) <- sub("\\.npy$", "", substring(files, nchar(folder) + 2))
  arrays
}

read_npy <- function(path) {
  file <- file(path, "rb")
  on.exit(close(file))
  readBin(file, "raw", 8)
  header <- readChar(file, readBin(file, "integer", 1, 2, signed = FALSE))
  field <- function(pattern) regmatches(header, regexec(pattern, header))[[1]][2]
  type <- field("'descr': '([^']*)'")
  bytes <- as.integer(substring(type, 3))
  shape <- as.integer(strsplit(field("'shape': \\(([^)]*)\\)"), ", *")[[1]])
  size <- prod(shape)
  values <- switch(substr(type, 2, 2),
    f = readBin(file, "double", size, bytes),
    i = readBin(file, "integer", 2 * size, 4)[c(TRUE, FALSE)], # of int64 the lower half
    u = readBin(file, "integer", size, bytes, signed = FALSE),
    U = apply(matrix(readBin(file, "integer", size * bytes, 4), bytes), 2, intToUtf8)
  )
  if (length(shape) < 2) return(values)
  if (field("'fortran_order': (\\w+)") == "True") return(array(values, shape))
  aperm(array(values, rev(shape)))
}

# The cases that match a pattern, with their `meta` read.
cases <- function(folder, pattern) {
  files <- list.files(folder, pattern, full.names = TRUE)
  read <- function(file) {
    case <- read_npz(file)
    case$meta <- jsonlite::fromJSON(case$meta)
    case
  }
  setNames(lapply(files, read), basename(files))
}
