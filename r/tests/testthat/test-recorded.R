# What PyTorch's own layers gave, recorded in the repository that this package lies in.

recorded <- file.path("..", "..", "..", "tests", "fixtures", "torch")

case <- function(file) {
  arrays <- python$numpy$load(file)
  names <- reticulate::py_to_r(python$builtins$list(arrays$files))
  json <- reticulate::import("json", convert = TRUE)
  array <- function(name) reticulate::py_get_item(arrays, name)
  meta <- json$loads(reticulate::py_str(array("meta")))
  names <- setdiff(names, "meta")
  c(list(meta = meta), sapply(names, function(name) from_numpy(array(name)), simplify = FALSE))
}

test_that("recorded cases come out", {
  skip_if_not(dir.exists(recorded), "the repository's recorded cases")
  files <- list.files(recorded, "^(gru|rnn|lstm)_.*npz$", full.names = TRUE)
  builds <- list(gru = nn_gru, lstm = nn_lstm, rnn = nn_rnn)
  ran <- c(gru = 0, lstm = 0, rnn = 0)
  for (file in files) {
    recorded <- case(file)
    if (length(dim(recorded$input)) != 3) next # without a batch, which torch for R does not take
    kind <- sub("_.*", "", basename(file))
    ran[kind] <- ran[kind] + 1
    layer <- suppressWarnings(do.call(
      builds[[kind]], c(recorded$meta$args, list(dtype = recorded$meta$dtype))
    ))
    if (!isTRUE(recorded$meta$training)) layer$eval()
    weights <- recorded[grepl("^weight\\.", names(recorded))]
    names(weights) <- count_layers(sub("^weight\\.", "", names(weights)), 1)
    layer$load_state_dict(weights)
    input <- recorded$input
    first <- isTRUE(recorded$meta$args$batch_first)
    if (!is.null(recorded$lengths)) {
      input <- nn_utils_rnn_pack_padded_sequence(input, recorded$lengths, first, FALSE)
    }
    state <- function(h, c) if (kind == "lstm" && !is.null(h)) list(h, c) else h
    result <- layer(input, state(recorded$h_0, recorded$c_0))
    if (!is.null(recorded$lengths)) {
      result[[1]] <- nn_utils_rnn_pad_packed_sequence(result[[1]], first)[[1]]
    }
    tolerance <- if (recorded$meta$dtype == "float64") 1e-12 else 1e-5
    expect_result(result, list(recorded$output, state(recorded$h_n, recorded$c_n)), tolerance)
  }
  expect_gt(ran["gru"] + ran["rnn"], 50)
  expect_gte(ran["lstm"], 5)
})
