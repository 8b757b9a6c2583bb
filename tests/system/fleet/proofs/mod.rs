//! The judge itself: each promise broken in a history made by hand must be found, and nothing else.

mod bounds;
mod figures;
mod refresh;
mod script;
mod tokens;
mod trail;
