"""What can be done for a member, one folder each."""
