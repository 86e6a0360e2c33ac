"""What a request holds open and what it depends on: opened once, in order, and closed the other way round."""
