"""Facts about a data set as a whole: repeats, oddities, and what a run began with."""
