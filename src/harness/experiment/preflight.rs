//! Whether an experiment can be done, asked before anything starts: every problem at once.
