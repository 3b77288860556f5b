//! Owns the operators' listener.
