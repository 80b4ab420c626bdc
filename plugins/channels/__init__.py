"""The platforms that members write on, one folder each."""
