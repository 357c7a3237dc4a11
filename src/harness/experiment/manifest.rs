//! How a run was made: versions, flags, seeds, hashes and environment, at its start and at its end.
