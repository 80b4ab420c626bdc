"""`make bench`: how fast this is, beside others, in one run, taken in turn. See docs/performance.md."""
