"""The sweep: all candidates of a round trained in one pass over the data."""
