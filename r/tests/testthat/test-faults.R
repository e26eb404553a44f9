# Threads that meet at each step take long where the processors have other work.
on_one_thread <- function(env = parent.frame()) {
  before <- elman_set_num_threads(1)
  do.call(on.exit, list(bquote(elman_set_num_threads(.(before))), add = TRUE), envir = env)
}

interrupt_soon <- function() {
  system(sprintf("(sleep 0.3; kill -INT %d)", Sys.getpid()), wait = FALSE)
}

# What became of an expression that takes seconds.
interrupted <- function(expr) {
  tryCatch(
    {
      interrupt_soon()
      expr
      "ran"
    },
    interrupt = function(e) "stopped"
  )
}

test_that("Ctrl-C stops a long call, forward and backward, and the next call is right", {
  on_one_thread()
  layer <- nn_gru(1, 256, 4)
  x <- array(0, c(50000, 1, 1))
  short <- layer(x[1:10, , , drop = FALSE])
  expect_identical(interrupted(layer(x)), "stopped")
  expect_identical(layer(x[1:10, , , drop = FALSE]), short)

  layer <- nn_rnn(1, 1000, dtype = "float64")
  there <- layer$vjp(x[1:2000, , , drop = FALSE])
  d <- array(1, c(2000, 1, 1000))
  expect_identical(interrupted(there$vjp(d)), "stopped")
})

test_that("a handler of the interrupt runs in the middle of a call, which goes on", {
  on_one_thread()
  layer <- nn_gru(1, 256)
  x <- array(0, c(10000, 1, 1))
  want <- layer(x)
  inner <- NULL
  resume <- function(e) {
    inner <<- layer(x[1:10, , , drop = FALSE])
    tryInvokeRestart("resume")
  }
  withCallingHandlers(interrupt = resume, {
    interrupt_soon()
    while (is.null(inner)) got <- layer(x)
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
  layer <- nn_gru(64, 64)
  x <- array(0, c(10, 8, 64))
  step <- function() {
    layer$load_state_dict(layer$parameters)
    layer$vjp(x)$vjp(array(1, c(10, 8, 64)))
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
  # A step takes 100 kB for the way back, and packed weights 300: lost, 5000 pages or 15000.
  expect_lt(min(diff(pages)), 2500)
})
