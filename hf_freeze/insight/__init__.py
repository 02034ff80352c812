"""What is learned about plans: what they do while they train, and which of them to take."""
