//! The reference fork's driver as a black box, with everything it needs written for it.
