set.seed(8)

temporary <- function(env = parent.frame()) {
  path <- tempfile(fileext = ".safetensors")
  do.call(on.exit, list(bquote(unlink(.(path))), add = TRUE), envir = env)
  path
}

# A file as the format has it, by hand.
by_hand <- function(path, header, data = raw()) {
  header <- charToRaw(header)
  writeBin(c(writeBin(length(header), raw(), 4, endian = "little"), raw(4), header, data), path)
  path
}

one_tensor <- function(dtype, shape, bytes) {
  sprintf('{"w":{"dtype":"%s","shape":[%s],"data_offsets":[0,%d]}}', dtype, shape, bytes)
}

test_that("a file that was written by hand is read", {
  path <- temporary()
  data <- writeBin(c(1, 2, 3, 4, 5, 6), raw(), 4, endian = "little")
  by_hand(path, one_tensor("F32", "2,3", 24), data)
  expect_identical(read_safetensors(path)$w, rbind(c(1, 2, 3), c(4, 5, 6)))
  by_hand(path, one_tensor("F32", "6", 24), data)
  expect_identical(read_safetensors(path)$w, c(1, 2, 3, 4, 5, 6))
  by_hand(path, one_tensor("F32", "", 4), data[1:4])
  expect_identical(read_safetensors(path)$w, 1)
  by_hand(path, one_tensor("F32", "0,3", 0))
  expect_identical(read_safetensors(path)$w, matrix(0, 0, 3))
  by_hand(path, '{"__metadata__":{"a":"b"}}')
  expect_identical(attr(read_safetensors(path), "metadata"), c(a = "b"))
})

test_that("every type of numbers is read", {
  path <- temporary()
  bytes <- function(...) as.raw(c(...))
  read <- function(dtype, count, data) {
    read_safetensors(by_hand(path, one_tensor(dtype, count, length(data)), data))$w
  }
  expect_identical(read("F64", 1, writeBin(pi, raw(), 8, endian = "little")), pi)
  # 1, -2, 65504, 2^-24, 2^-14, Inf, -0.5: IEEE 754's half precision.
  half <- bytes(0, 0x3c, 0, 0xc0, 0xff, 0x7b, 1, 0, 0, 4, 0, 0x7c, 0, 0xb8)
  expect_identical(read("F16", 7, half), c(1, -2, 65504, 2^-24, 2^-14, Inf, -0.5))
  expect_true(is.nan(read("F16", 1, bytes(1, 0x7c))))
  expect_identical(read("BF16", 3, bytes(0x80, 0x3f, 0x49, 0xc0, 0, 0)), c(1, -3.140625, 0))
  expect_identical(read("I8", 2, bytes(255, 127)), c(-1, 127))
  expect_identical(read("U8", 2, bytes(255, 127)), c(255, 127))
  expect_identical(read("BOOL", 2, bytes(1, 0)), c(1, 0))
  expect_identical(read("I16", 1, bytes(0xfe, 0xff)), -2)
  expect_identical(read("U16", 1, bytes(0xfe, 0xff)), 65534)
  expect_identical(read("I32", 2, bytes(0xfe, 0xff, 0xff, 0xff, 1, 0, 0, 0)), c(-2, 1))
  expect_identical(read("U32", 1, bytes(0xfe, 0xff, 0xff, 0xff)), 4294967294)
  minus_two <- bytes(0xfe, rep(0xff, 7))
  expect_identical(read("I64", 2, c(minus_two, bytes(0, 0, 0, 0, 1, 0, 0, 0))), c(-2, 2^32))
  expect_identical(read("U64", 1, bytes(0, 0, 0, 0, 0, 0, 0, 0x80)), 2^63)
})

test_that("what is written is read", {
  path <- temporary()
  tensors <- list(a = numbers(2, 3, 4), "b \"c\" \u00e9" = rnorm(5), d = 1:3, e = matrix(0, 0, 2))
  write_safetensors(tensors, path, c(note = "x \"y\""), dtype = "float64")
  read <- read_safetensors(path)
  expect_equal(names(read), names(tensors))
  expect_identical(read$a, tensors$a)
  expect_identical(read[[2]], tensors[[2]])
  expect_identical(read$d, c(1, 2, 3))
  expect_identical(dim(read$e), c(0L, 2L))
  expect_identical(attr(read, "metadata"), c(note = "x \"y\""))
  size <- readBin(path, "integer", 1, endian = "little")
  expect_identical(size %% 8L, 0L) # so that numbers lie where processors want them
  write_safetensors(list(a = 1 / 3), path)
  expect_lt(abs(read_safetensors(path)$a - 1 / 3), 2^-25)
})

test_that("a layer's file has the layer", {
  path <- temporary()
  layers <- list(
    nn_gru(3, 4, 2, bidirectional = TRUE, dropout = 0.25), nn_lstm(3, 4, dtype = "float64"),
    nn_rnn(3, 4, nonlinearity = "relu", bias = FALSE, batch_first = TRUE), nn_rnn(3, 4),
    nn_gru(3, 4, reset_after = FALSE), nn_lstm(3, 4, 2, proj_size = 2)
  )
  for (layer in layers) {
    save_layer(layer, path)
    set.seed(1)
    loaded <- load_layer(path)
    drawn <- runif(1)
    set.seed(1)
    expect_identical(drawn, runif(1)) # none of R's random numbers is taken
    expect_identical(capture.output(print(loaded)), capture.output(print(layer)))
    expect_identical(loaded$parameters, layer$parameters)
  }
})

test_that("a file of Elman for Python is read, and has its bits", {
  layer <- load_layer("python.safetensors")
  expect_output(print(layer), "nn_lstm(3, 4, num_layers = 2, bidirectional = TRUE)", fixed = TRUE)
  expected <- read_safetensors("python-output.safetensors")
  expect_identical(layer(expected$input)[[1]], expected$output)
})

test_that("what is no such file is an error that says so", {
  path <- temporary()
  lies <- "is not a safetensors file: an entry of its header lies"
  refused(read_safetensors("nowhere"), 'read_safetensors: "nowhere" is no file')
  refused(read_safetensors(tempdir()), "is no file")
  refused(read_safetensors(1), "read_safetensors: 1 is no file")
  writeBin(raw(3), path)
  refused(read_safetensors(path), "is not a safetensors file: it ends before its header does")
  by_hand(path, "nonsense")
  refused(read_safetensors(path), "is not a safetensors file: its header is no JSON")
  refused(read_safetensors(by_hand(path, "[1]")), "its header names no tensors")
  refused(read_safetensors(by_hand(path, '{"w":1}')), "is not a safetensors file: an entry")
  refused(read_safetensors(by_hand(path, one_tensor("F7", "1", 4), raw(4))), 'it has the type "F7"')
  refused(read_safetensors(by_hand(path, one_tensor("F32", "2", 4), raw(4))), lies)
  refused(read_safetensors(by_hand(path, one_tensor("F32", "2", 8), raw(4))), lies)
  refused(read_safetensors(by_hand(path, one_tensor("F32", "-1,-1", 4), raw(4))), lies)
  by_hand(path, one_tensor("F32", "1", 4), raw(4))
  refused(load_layer(path), "does not describe an Elman layer")
  write_safetensors(nn_gru(3, 4)$parameters, path, c(elman = '{"cell":"gru","input_size":3}'))
  refused(load_layer(path), "load_layer:")
  deep <- '{"cell":"gru","input_size":3,"hidden_size":4,"num_layers":65536}'
  write_safetensors(nn_gru(3, 4)$parameters, path, c(elman = deep))
  refused(load_layer(path), "num_layers: 65536 layers of 4 weights")
  liquid <- '{"cell":"liquid","input_size":3,"hidden_size":4}'
  write_safetensors(list(a = 1), path, c(elman = liquid))
  refused(load_layer(path), 'cell: "liquid" is none of this package\'s')
  refused(save_layer(nn_gru_cell(3, 4), path), "save_layer: expected a layer of nn_rnn, nn_gru or")
  refused(save_layer(1, path), "nn_lstm, got numeric")
  refused(write_safetensors(list(1), path), "write_safetensors: tensors must be a list of numeric")
  refused(write_safetensors(list(a = "b"), path), "write_safetensors: tensors must be a list of")
  write <- function(...) write_safetensors(list(a = 1, ...), path)
  refused(write(a = 2), 'write_safetensors: tensors must have names of their own, got "a"')
  refused(write(2), 'tensors must have names of their own, got ""')
  refused(write(`__metadata__` = 2), 'names of their own, got "__metadata__"')
  refused(write(b = c(1, -1e300)), "b has -1e+300, which only float64 can hold")
  refused(write_safetensors(list(a = 1), path, "b"), "metadata must have names of their own, got none")
  refused(write_safetensors(list(a = 1), path, 2), "metadata must be a character vector, got num")
  refused(save_layer(nn_gru(3, 4), NA), "path must be a file's, got NA")
  nowhere <- file.path(tempdir(), "nowhere", "layer")
  refused(write_safetensors(list(a = 1), nowhere), 'nowhere" is no folder')
  write(b = c(NA, Inf, 3.4028235e38)) # what float32 has
  expect_identical(read_safetensors(path)$b[2], Inf)
  expect_lt(read_safetensors(path)$b[3], Inf)
  refused(write_safetensors(list(a = 1), path, dtype = "float16"), "dtype must be float32 or")
})

test_that("a file cut short at any byte is refused", {
  path <- temporary()
  save_layer(nn_gru(1, 1), path)
  whole <- readBin(path, "raw", file.size(path))
  for (size in seq_len(length(whole) - 1)) {
    writeBin(whole[seq_len(size)], path)
    expect_error(load_layer(path), "is not a safetensors file")
  }
})
