//! MODP groups (to be filled).
