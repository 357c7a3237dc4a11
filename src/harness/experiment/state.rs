//! What another process may know of an experiment: who plays it, how far it is, how to stop it.
