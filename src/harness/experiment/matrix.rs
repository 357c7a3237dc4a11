//! Policies × concurrencies × repeats: their order, and what is left of them.
