//! Parses the arguments, calls one library function, exits.

fn main() {}
