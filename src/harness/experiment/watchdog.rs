//! When to stop waiting: the last step and the last task, per program and per cell. Pure.
