"""What a run says about itself: measured while it trains, and what follows from it."""
