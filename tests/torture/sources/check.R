set.seed(1)
kept <- list()
round <- 0
repeat {
  for (i in 1:10) {
    block <- as.integer(runif(sample(4000, 1), 0, 1e6))
    kept[[length(kept) + 1]] <- list(block = block, sum = sum(as.numeric(block)), name = strrep("x", i), i = i)
  }
  if (length(kept) > 400) kept <- kept[-(1:100)]
  for (entry in kept) {
    if (sum(as.numeric(entry$block)) != entry$sum || nchar(entry$name) != entry$i) {
      cat("bad\n")
      quit(status = 3)
    }
  }
  m <- matrix(runif(10000), 100)
  if (!isTRUE(all.equal(m %*% solve(m), diag(100), tolerance = 1e-5))) {
    cat("bad: matrix\n")
    quit(status = 3)
  }
  cat("ok", round, "\n")
  flush(stdout())
  round <- round + 1
}
