"""What understands and answers, one folder each."""
