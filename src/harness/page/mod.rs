//! The comparison as one HTML page that needs nothing else: plain data in, text out.

mod data;

pub use data::*;
