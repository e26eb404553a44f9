#' Number of threads
#'
#' How many threads a call of a layer may use. Small calls use fewer. The answer does not depend on
#' it. The default is the number of processors.
#'
#' @param n number of threads, at least 1.
#'
#' @return `elman_get_num_threads()` returns the number. `elman_set_num_threads()` returns,
#'   invisibly, the number before.
#'
#' @examples
#' before <- elman_set_num_threads(1)
#' elman_get_num_threads()
#' elman_set_num_threads(before)
#' @export
elman_set_num_threads <- function(n) {
  n <- count("elman_set_num_threads", "n", n)
  before <- elman_get_num_threads()
  .Call(C_set_threads, as.integer(n))
  invisible(before)
}

#' @rdname elman_set_num_threads
#' @export
elman_get_num_threads <- function() .Call(C_get_threads)
