library(testthat)
library(elman)

test_check("elman")
