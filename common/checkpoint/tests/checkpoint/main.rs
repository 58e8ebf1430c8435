//! Tests of checkpoints on every store that there is.
#![cfg(test)]

mod conformance;
mod damage;
mod export;
mod history;
mod recut;
mod support;
mod torn;
