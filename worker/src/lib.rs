//! (crate root)

pub mod data;
pub mod models;
