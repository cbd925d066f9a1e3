//! Integration tests of the router: the real binary's parts, real protocols, in-process fakes.

mod crash;
mod house;
mod path;
mod start;
mod support;
