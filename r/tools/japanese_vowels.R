# Makes data/japanese_vowels.rda from the repository's recordings. From the repository root:
#   Rscript r/tools/japanese_vowels.R
source("r/tests/testthat/helper-npz.R")

recordings <- read_npz("examples/japanese_vowels/japanese_vowels.npz")
lengths <- recordings$lengths
frames <- array(0, c(max(lengths), length(lengths), ncol(recordings$frames)))
where <- cbind(sequence(lengths), rep(seq_along(lengths), lengths))
for (k in seq_len(ncol(recordings$frames))) frames[cbind(where, k)] <- recordings$frames[, k]
japanese_vowels <- list(
  frames = frames, lengths = lengths, speaker = factor(recordings$speakers),
  test = recordings$split == "test"
)
save(japanese_vowels, file = "r/data/japanese_vowels.rda", compress = "xz", version = 2)
