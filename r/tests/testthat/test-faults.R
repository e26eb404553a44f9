# Threads that meet at each step take long where the processors have other work.
on_one_thread <- function(env = parent.frame()) {
  before <- elman_set_num_threads(1)
  do.call(on.exit, list(bquote(elman_set_num_threads(.(before))), add = TRUE), envir = env)
}

test_that("Ctrl-C stops a long call, forward and backward, and the next call is right", {
  on_one_thread()
  layer <- nn_gru(1, 256, 4) # some seconds
  x <- array(0, c(50000, 1, 1))
  short <- layer(x[1:10, , , drop = FALSE])
  interrupt_soon <- function() system(paste("sleep 0.5; kill -INT", Sys.getpid()), wait = FALSE)
  stopped <- function(expr) tryCatch({ expr; "ran" }, interrupt = function(e) "stopped")
  interrupt_soon()
  expect_identical(stopped(layer(x)), "stopped")
  expect_identical(layer(x[1:10, , , drop = FALSE]), short)

  layer <- nn_gru(1, 256, 4)
  x <- array(0, c(6000, 1, 1))
  there <- layer$vjp(x)
  d <- array(1, c(6000, 1, 256))
  back <- function() for (i in 1:20) there$vjp(d)
  interrupt_soon()
  expect_identical(stopped(back()), "stopped")
  expect_true(all(is.finite(there$vjp(d)$input)))
})

test_that("calling handlers of an interrupt run in the middle of a call, which goes on", {
  on_one_thread()
  layer <- nn_gru(1, 256, 1)
  x <- array(0, c(30000, 1, 1))
  want <- layer(x)
  inner <- NULL
  system(paste("sleep 0.3; kill -INT", Sys.getpid()), wait = FALSE)
  got <- withCallingHandlers(layer(x), interrupt = function(e) {
    inner <<- layer(x[1:10, , , drop = FALSE])
    tryInvokeRestart("resume")
  })
  expect_identical(inner[[1]], want[[1]][1:10, , , drop = FALSE])
  expect_identical(got, want)
})

test_that("memory that is not to be had is an error, and the package works afterwards", {
  skip_if(Sys.which("prlimit") == "", "prlimit takes memory away")
  said <- in_another_process("
    library(elman)
    limit <- function(bytes) {
      system(sprintf('prlimit --pid %d --as=%s', Sys.getpid(), bytes))
    }
    size <- function() {
      line <- grep('^VmSize', readLines('/proc/self/status'), value = TRUE)
      1024 * as.numeric(gsub('[^0-9]', '', line))
    }
    layer <- nn_gru(1, 1500)
    x <- array(0, c(2, 1, 1))
    limit(sprintf('%.0f:unlimited', size() + 2e7)) # its weights take 27 MB more
    cat(tryCatch(layer(x), error = conditionMessage))
    limit('unlimited:unlimited')
    cat('', all(is.finite(layer(x)[[1]])))
  ")
  expect_identical(said, "nn_gru: not enough memory TRUE")
})

test_that("a fork computes the same", {
  layer <- nn_gru(64, 128)
  x <- array(rnorm(40 * 32 * 64), c(40, 32, 64))
  want <- layer(x)
  jobs <- lapply(1:2, function(i) parallel::mcparallel(layer(x)))
  for (got in parallel::mccollect(jobs)) expect_identical(got, want)
})

test_that("the number of threads is set, and returned", {
  before <- elman_get_num_threads()
  expect_gte(before, 1)
  expect_identical(elman_set_num_threads(1), before)
  expect_identical(elman_get_num_threads(), 1L)
  expect_error(elman_set_num_threads(0), "elman_set_num_threads: n must be at least 1, got 0")
  expect_error(elman_set_num_threads("a"), "n must be a whole number, got \"a\"")
  elman_set_num_threads(before)
})

test_that("memory stays flat", {
  layer <- nn_gru(16, 32)
  x <- array(0, c(50, 8, 16))
  step <- function() {
    layer$load_state_dict(layer$parameters)
    layer$vjp(x)$vjp(array(1, c(50, 8, 32)))
    NULL
  }
  resident <- function() {
    gc()
    as.numeric(strsplit(readLines("/proc/self/statm"), " ")[[1]][2])
  }
  skip_if_not(file.exists("/proc/self/statm"), "pages in use can be counted")
  pages <- replicate(5, {
    for (i in 1:200) step()
    resident()
  })
  # A step keeps 200 kB for the way back: what is lost would be 10000 pages each time.
  expect_lt(min(diff(pages)), 2500)
})
