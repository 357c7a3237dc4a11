//! The policy's stories.
