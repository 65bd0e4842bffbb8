"""Measuring: the shape of a result, the matrix runner behind `genrec bench`, and what it measures."""
