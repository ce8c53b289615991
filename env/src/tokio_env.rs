//! The production environment.
