//! Integration tests of the router: the real binary's parts, real protocols, in-process fakes.

mod house;
