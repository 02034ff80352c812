"""What is learned about plans and runs: what they do while they train, what the data holds, which plan to take."""
