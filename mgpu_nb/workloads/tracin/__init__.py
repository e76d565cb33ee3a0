"""TracIn: which training triples made a link predictor say what it says."""
