//! What serves the model: an engine that runs already, one of our own, the embedded one, or a remote one.
